//! NLVR2 against the official program.

use evaluate::metrics::nlvr2::sample;
use evaluate::predictions::nlvr2::{judge, read_labels, read_predictions};
use fixtures::{Set, number};

#[test]
fn accuracy_and_consistency_are_official() {
    let set = Set::open("metrics");
    let labels = read_labels(&set.path("nlvr2_examples.jsonl")).expect("labels");
    let file = set.path("nlvr2_predictions.csv");
    let predictions = read_predictions(&file).expect("predictions");
    let verdicts = judge(&file, &predictions, &labels).expect("all are predicted");
    let expected = set.json("nlvr2_expected.json");
    assert_eq!(verdicts.examples.len() as f64, number(&expected["n"]));
    let sample = sample(verdicts.examples);
    assert_eq!(sample.quantities.len(), 2);
    for (quantity, name) in sample.quantities.iter().zip(["accuracy", "consistency"]) {
        assert_eq!(quantity.name, name);
        let got = sample.value(quantity).expect("examples");
        assert!(
            (got - number(&expected[name])).abs() < 1e-12,
            "{name}: {got}"
        );
    }
}
