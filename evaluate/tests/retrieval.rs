//! Retrieval against clip_benchmark, torchmetrics and torch, as recorded in the fixture.

use evaluate::Sample;
use evaluate::metrics::retrieval::{Captions, RANKS, Standing, Standings, Ties, median_and_mean};
use evaluate::metrics::retrieval::{sample, standings};

use serde_json::Value;

use crate::fixture::{integers, json, list, matrix, number};

/// What the fixture calls each way to count ties.
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

fn value(sample: &Sample, name: &str) -> f64 {
    let quantity = sample.quantities.iter().find(|q| q.name == name);
    let quantity = quantity.expect("the quantity is reported");
    sample.value(quantity).expect("there are queries")
}

#[test]
fn recall_is_that_of_the_judges_however_ties_are_counted() {
    for case in list(&json("metrics/retrieval.json")["cases"]) {
        let (captions, found) = judged_case(case);
        for (ties, name) in TIES {
            let judged = sample(&found, &captions, ties);
            let mut sum = 0.0;
            for k in RANKS {
                for (prefix, direction) in [("tr", "text_retrieval"), ("ir", "image_retrieval")] {
                    let expected = number(&case["expected"][k.to_string()][direction][name]);
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
    for case in list(&json("metrics/retrieval.json")["cases"]) {
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

#[test]
fn the_order_of_rows_and_columns_does_not_matter() {
    let cases = json("metrics/retrieval.json");
    for case in list(&cases["cases"]) {
        let scores = matrix(&case["scores_times_scale"], number(&case["scale"]));
        let text_ids = integers(&case["text_to_image"]);
        let image_ids: Vec<i64> = (0..scores.nrows() as i64).collect();
        let mut turned = scores.clone();
        turned.invert_axis(ndarray::Axis(0));
        turned.invert_axis(ndarray::Axis(1));
        let backwards = |ids: &[i64]| -> Vec<i64> { ids.iter().rev().copied().collect() };
        let straight = Captions::new(&image_ids, &text_ids).expect("captions");
        let reversed = Captions::new(&backwards(&image_ids), &backwards(&text_ids))
            .expect("the same captions");
        let [a, b] = [(&scores, &straight), (&turned, &reversed)].map(|(scores, captions)| {
            let found = standings(&scores.view(), captions).expect("numbers");
            let judged = sample(&found, captions, Ties::Expected);
            judged
                .quantities
                .iter()
                .map(|q| judged.value(q))
                .collect::<Vec<_>>()
        });
        assert!(a.len() == b.len() && a.len() > 6, "{}: {a:?}", case["name"]);
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (a.expect("queries"), b.expect("queries"));
            assert!((a - b).abs() < 1e-9, "{}: {a} and {b}", case["name"]);
        }
    }
}

#[test]
fn ranks_agree_with_a_stable_sort() {
    // 60 images with 300 texts, scores with many ties.
    let (n_images, n_texts) = (60usize, 300usize);
    let scores = ndarray::Array2::from_shape_fn((n_images, n_texts), |(row, column)| {
        ((row * 7919 + column * 104_729) % 41) as f64
    });
    let text_ids: Vec<i64> = (0..n_texts).map(|t| (t * 37 % n_images) as i64).collect();
    let image_ids: Vec<i64> = (0..n_images as i64).collect();
    let captions = Captions::new(&image_ids, &text_ids).expect("captions");
    let found = standings(&scores.view(), &captions).expect("numbers");
    for (text, standing) in found.of_texts.iter().enumerate() {
        let mut order: Vec<usize> = (0..n_images).collect();
        order.sort_by(|&a, &b| scores[(b, text)].total_cmp(&scores[(a, text)]));
        let rank = 1 + order
            .iter()
            .position(|&row| row as i64 == text_ids[text])
            .expect("there");
        assert_eq!(standing.rank(Ties::First), rank as f64);
    }
    for (row, standing) in found.of_images.iter().enumerate() {
        let mut order: Vec<usize> = (0..n_texts).collect();
        order.sort_by(|&a, &b| scores[(row, b)].total_cmp(&scores[(row, a)]));
        let rank = 1 + order
            .iter()
            .position(|&t| text_ids[t] == row as i64)
            .expect("there");
        assert_eq!(standing.rank(Ties::First), rank as f64);
    }
}
