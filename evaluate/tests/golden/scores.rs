//! The metrics of the published program on features and logits.

use evaluate::metrics::accuracy::accuracy;
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::metrics::vqa::score_of_logits;
use fixtures::{Case, Raw, number};
use ndarray::Array2;

use crate::fixture::value;

fixtures::golden_tests! {
    package: "evaluate", set: "vl_merging",
    recall_vqa_score_and_accuracy_are_as_published: "scores" => scores,
}

fn matrix(raw: &Raw) -> Array2<f32> {
    let values = raw.values().into_iter().map(|v| v as f32).collect();
    Array2::from_shape_vec((raw.shape[0], raw.shape[1]), values).expect("a matrix")
}

fn scores(case: &Case) {
    let (file, expected) = (case.tensors("input"), case.json("expected"));
    let tolerance = case.tolerance("", "atol");
    let check = |name: &str, found: f64, expected: &serde_json::Value| {
        let expected = number(expected);
        let is_close = (found - expected).abs() <= tolerance;
        assert!(is_close, "{name}: {found}, expected {expected}");
    };

    let images = matrix(&file["recall.image_feats"]);
    let texts = matrix(&file["recall.text_feats"]);
    let captions = Captions::new(
        &file["recall.image_id"].integers(),
        &file["recall.text_image_id"].integers(),
    );
    let captions = captions.expect("ids match");
    let found = standings(&images.dot(&texts.t()).view(), &captions).expect("numbers");
    let judged = sample(&found, &captions, Ties::default());
    for (name, expected) in expected["recall"].as_object().expect("recalls by name") {
        check(name, value(&judged, name), expected);
    }

    let [logits, targets] = ["vqa.logits", "vqa.targets"].map(|key| matrix(&file[key]));
    let score = score_of_logits(logits.view(), targets.view()).expect("same shape");
    check("vqa", score.expect("questions"), &expected["vqa_score"]);
    let logits = matrix(&file["acc.logits"]);
    let right = accuracy(logits.view(), &file["acc.target"].integers());
    let right = right.expect("targets are classes").expect("examples");
    check("accuracy", right, &expected["accuracy"]);
}
