//! NLVR2 against the official program, as recorded in the fixture.

use evaluate::metrics::nlvr2::sample;
use evaluate::predictions::nlvr2::{judge, read_labels, read_predictions};

use crate::fixture::{json, number, path};

#[test]
fn accuracy_and_consistency_are_official() {
    let labels = read_labels(&path("metrics/nlvr2_examples.jsonl")).expect("labels");
    let file = path("metrics/nlvr2_predictions.csv");
    let predictions = read_predictions(&file).expect("predictions");
    let verdicts = judge(&file, &predictions, &labels).expect("all are predicted");
    let expected = json("metrics/nlvr2_expected.json");
    assert_eq!(verdicts.examples.len() as f64, number(&expected["n"]));
    let sample = sample(verdicts.examples);
    for (quantity, name) in sample.quantities.iter().zip(["accuracy", "consistency"]) {
        assert_eq!(quantity.name, name);
        let got = sample.value(quantity).expect("examples");
        assert!(
            (got - number(&expected[name])).abs() < 1e-12,
            "{name}: {got}"
        );
    }
}

/// Writes labels and predictions and judges them.
fn said_of(labels: &str, predictions: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let [label_file, file] = ["labels.jsonl", "p.csv"].map(|name| folder.path().join(name));
    std::fs::write(&label_file, labels).expect("written");
    std::fs::write(&file, predictions).expect("written");
    let judged = read_labels(&label_file).and_then(|labels| {
        judge(&file, &read_predictions(&file)?, &labels).map(|verdicts| verdicts.n_unused)
    });
    match judged {
        Err(error) => error.to_string(),
        Ok(n_unused) => format!("{n_unused} unused"),
    }
}

#[test]
fn wrong_lines_are_refused_by_number() {
    let labels = "{\"identifier\": \"dev-0-0-0\", \"label\": \"True\"}\n";
    assert_eq!(
        said_of(labels, "dev-0-0-0,TRUE\n\ndev-9-0-0,false"),
        "1 unused"
    );
    for (predictions, fault) in [
        (
            "\ndev-0-0-0",
            "p.csv: line 2: expected an identifier, a comma and true or false",
        ),
        (
            "dev-0-0-0,yes",
            "p.csv: line 1: \"yes\" is neither true nor false",
        ),
        ("a,true\na,true", "p.csv: example a occurs more than once"),
        (
            "a,true",
            "p.csv: 1 of 1 have no answer; the first is example dev-0-0-0",
        ),
    ] {
        let said = said_of(labels, predictions);
        assert!(said.ends_with(fault), "{said}");
    }
    let said = said_of("\n{\"identifier\": 3}", "");
    assert!(
        said.contains("labels.jsonl: line 2: is no example: "),
        "{said}"
    );
    assert!(said_of("", "").ends_with("labels.jsonl: holds no examples"));
    let long = format!("dev-0-0-0,{}", "x".repeat(1 << 20));
    let said = said_of(labels, &long);
    assert!(
        said.ends_with("p.csv: line 1: is longer than 1048576 bytes"),
        "{said}"
    );
}
