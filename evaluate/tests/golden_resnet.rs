//! Residual networks run and have the statistics of their batch norms taken again, case by case of
//! `fixtures/resnet/manifest.json`.

use std::cell::RefCell;

use candle_core::{DType, Device};
use evaluate::batch::Images;
use evaluate::models::{self, Opened, Overrides};
use evaluate::nn::BatchStatistics;
use fixtures::Case;

use crate::golden::forward::{check, outputs_of};
use crate::golden::models::open as checkpoint;

fixtures::golden_tests! {
    package: "evaluate", set: "resnet",
    forward_passes_are_those_of_torchvision: "forward" => forward,
    statistics_of_batches_are_those_that_torch_keeps: "batch_statistics" => batch_statistics,
}

fn opened(case: &Case) -> Opened {
    let file = checkpoint(&case.file("model"));
    let opened = models::open(file, &Overrides::default(), &Device::Cpu, DType::F32);
    let opened = opened.expect("a model");
    let unused = opened.weights.report().unused;
    let is_count = |name: &String| name.ends_with(".num_batches_tracked");
    assert!(unused.iter().all(is_count), "{unused:?}");
    opened
}

fn assert_close(case: &Case, name: &str, found: &[f64], expected: &[f64]) {
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let difference = fixtures::first_difference(found, expected, rtol, atol);
    assert_eq!(difference, None, "{name}");
}

fn forward(case: &Case) {
    let opened = opened(case);
    let inputs = checkpoint(&case.file("input"));
    let found = outputs_of(opened.model.as_ref(), &inputs, &["image".to_owned()]);
    check(case, &found, &case.tensors("expected"));
}

fn batch_statistics(case: &Case) {
    let opened = opened(case);
    let model = opened.model.batch_normed().expect("batch norms");
    let pixels = case.tensors("input")["pixel_values"].tensor();
    let statistics = RefCell::new(BatchStatistics::default());
    let mut first = 0;
    for n in fixtures::list(&case["params"]["batches"]) {
        let n = n.as_u64().expect("a number") as usize;
        let batch = pixels.narrow(0, first, n).and_then(|t| t.contiguous());
        let images = Images::new(batch.expect("rows"));
        model.observe(&images, &statistics).expect("observed");
        first += n;
    }
    let statistics = statistics.into_inner();
    let expected = case.tensors("expected");
    let mut n_norms = 0;
    for (name, [mean, variance]) in statistics.means() {
        for (part, found) in [("running_mean", mean), ("running_var", variance)] {
            let key = format!("{name}.{part}");
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            assert_close(case, &key, &found, &expected[&key].values());
        }
        n_norms += 1;
    }
    assert_eq!(2 * n_norms, expected.len());
}

#[test]
fn a_residual_network_does_not_learn_and_says_why() {
    let file = checkpoint(&fixtures::path("resnet/basic.safetensors"));
    let prepared = models::prepare(file, &Overrides::default(), &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    let error = Opened::build(blueprint, weights.trainable()).err();
    let error = error.expect("refused").to_string();
    assert!(error.contains("batch norms"), "{error}");
}
