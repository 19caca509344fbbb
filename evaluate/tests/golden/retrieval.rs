//! Retrieval against clip_benchmark, torchmetrics and torch.

use evaluate::metrics::retrieval::{Captions, Standing, Standings, Ties, median_and_mean};
use evaluate::metrics::retrieval::{sample, standings};

use serde_json::Value;

use fixtures::{Set, integers, list, number};

use crate::fixture::{matrix, value};

/// The fixture's name for each way to count ties.
const TIES: [(Ties, &str); 4] = [
    (Ties::Expected, "expected"),
    (Ties::Pessimistic, "pessimistic"),
    (Ties::Optimistic, "optimistic"),
    (Ties::First, "first_index"),
];

/// Which captions belong to the images of a case, and how the queries stand.
fn judged_case(case: &Value) -> (Captions, Standings) {
    let scores = matrix(&case["scores_times_scale"], number(&case["scale"]));
    let image_ids: Vec<i64> = (0..scores.nrows() as i64).collect();
    let captions = Captions::new(&image_ids, &integers(&case["text_to_image"]))
        .expect("every image has captions");
    let found = standings(&scores.view(), &captions).expect("scores are numbers");
    (captions, found)
}

fn cases() -> Vec<Value> {
    let cases = Set::open("metrics").json("retrieval.json");
    list(&cases["cases"]).to_vec()
}

#[test]
fn recall_is_that_of_the_judges_however_ties_are_counted() {
    for case in &cases() {
        let (captions, found) = judged_case(case);
        for (ties, name) in TIES {
            let judged = sample(&found, &captions, ties);
            let mut sum = 0.0;
            // The others of `expected` are ranks, by name.
            for (k, expected) in case["expected"].as_object().expect("by rank") {
                if k.parse::<usize>().is_err() {
                    continue;
                }
                for (prefix, direction) in [("tr", "text_retrieval"), ("ir", "image_retrieval")] {
                    let expected = number(&expected[direction][name]);
                    let got = value(&judged, &format!("{prefix}_r{k}"));
                    assert!(
                        (got - expected).abs() < 1e-9,
                        "{}: {direction} R@{k}, {name}: {got}, expected {expected}",
                        case["name"]
                    );
                    sum += expected;
                }
            }
            assert!((value(&judged, "rsum") - 100.0 * sum).abs() < 1e-7);
        }
    }
}

#[test]
fn ranks_are_those_of_the_judges() {
    for case in &cases() {
        let (_, found) = judged_case(case);
        let expected = &case["expected"]["ranks"];
        for (of, ranks, direction) in [
            (
                &found.of_images,
                "text_retrieval_best_rank",
                "text_retrieval",
            ),
            (&found.of_texts, "image_retrieval_rank", "image_retrieval"),
        ] {
            // The fixture counts strictly larger scores.
            let rank = |s: &Standing| s.rank(Ties::Optimistic) as i64;
            let got: Vec<i64> = of.iter().map(rank).collect();
            assert_eq!(got, integers(&expected[ranks]), "{}", case["name"]);
            let (median, mean) = median_and_mean(of, Ties::Optimistic).expect("queries");
            assert_eq!(median, number(&expected[format!("{direction}_median")]));
            let expected_mean = number(&expected[format!("{direction}_mean")]);
            assert!((mean - expected_mean).abs() < 1e-9);
        }
    }
}
