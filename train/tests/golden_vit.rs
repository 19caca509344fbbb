//! Losses and gradients of classifiers of timm, case by case of `fixtures/vit/manifest.json`.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::forward::Given;
use evaluate::models::{Opened, Overrides, prepare};
use evaluate::nn::Tape;
use fixtures::Case;
use merge::io::OpenOptions;
use train::losses::{self, LossOptions};

use crate::fixture::l2;

fixtures::golden_tests! {
    package: "train", set: "vit",
    every_variable_has_the_gradient_that_timm_has: "loss_grad" => loss_grad,
}

/// By tape with blocks on slices, and as one graph.
fn loss_grad(case: &Case) {
    let tapes: [&dyn Fn() -> Option<Tape>; 2] = [&|| Some(Tape::new()), &|| None];
    for tape in tapes {
        let folder = case.set().path(case.text("model"));
        let file = merge::io::open(&folder, &OpenOptions::default()).expect("a checkpoint");
        let overrides = Overrides::default();
        let prepared = prepare(Arc::new(file), &overrides, &Device::Cpu, DType::F32);
        let (blueprint, weights) = prepared.expect("a model");
        let opened = Opened::build(blueprint, weights.trainable()).expect("built");
        let inputs = merge::io::open(&case.file("input"), &OpenOptions::default());
        let named = opened.model.named_passes().expect("passes");
        let given = Given::open(
            &inputs.expect("inputs"),
            named.inputs(),
            &Device::Cpu,
            DType::F32,
        );
        let loss = losses::by_name("vit", "image_classification").expect("known");
        let computed = loss.compute_by(
            opened.model.as_ref(),
            &opened.weights,
            &given.expect("inputs"),
            &LossOptions::default(),
            tape,
        );
        let computed = computed.expect("a loss");
        let expected = case.number("loss").expect("a loss");
        let within = case.tolerance("loss", "atol") + case.tolerance("loss", "rtol") * expected;
        assert!(
            (computed.loss - expected).abs() <= within,
            "{}",
            computed.loss
        );
        let expected = case.tensors("expected");
        let names: Vec<&String> = computed.gradients.keys().collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>());
        for (name, gradient) in &computed.gradients {
            let values = gradient.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let values = values.expect("numbers");
            let expected = expected[name].values();
            let pairs = values.iter().zip(&expected);
            let off = l2(pairs.map(|(found, expected)| f64::from(*found) - expected));
            let within = case.tolerance("grad", "rel_l2") * l2(expected.iter().copied());
            assert!(off <= within, "{name}: {off} > {within}");
        }
    }
}
