//! Layers of candle-nn with weights of any checkpoint.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use evaluate::Weights;
use merge::io::OpenOptions;

use crate::fixture::path;

const NAME: &str = "visual_projection";

fn weights() -> Weights {
    let file = path("clip/hf_clip/model.safetensors");
    let file = merge::io::open(&file, &OpenOptions::default()).expect("opens");
    let file = Arc::new(file);
    let layout = merge::layouts::detect(&file).expect("a layout");
    let (device, dtype) = (Device::Cpu, DType::F32);
    let weights = Weights::new(file, layout.as_ref(), str::to_owned, &device, dtype);
    weights.expect("names")
}

#[test]
fn a_layer_gets_its_tensors_and_the_weights_know_what_was_asked_for() {
    let weights = Arc::new(weights());
    let layer = candle_nn::linear_no_bias(32, 24, weights.var_builder().pp(NAME)).expect("there");
    let stored = fixtures::tensors(&path("clip/hf_clip/model.safetensors"));
    let stored = stored["visual_projection.weight"].tensor();
    let (found, stored) = (layer.weight().to_vec2::<f32>(), stored.to_vec2::<f32>());
    assert_eq!(found.expect("numbers"), stored.expect("numbers"));
    let report = weights.report();
    assert_eq!(report.used, ["visual_projection.weight"]);
    assert!(report.unused.contains(&"text_projection.weight".to_owned()));
}

#[test]
fn a_name_or_a_shape_that_is_not_there_is_an_error_that_says_so() {
    let builder = Arc::new(weights()).var_builder();
    let said = |outcome: candle_core::Result<Tensor>| outcome.expect_err("refused").to_string();
    let message = said(builder.get((24, 32), "visual_projection.wieght"));
    assert!(message.contains("`visual_projection.wieght`"), "{message}");
    assert!(message.contains("visual_projection.weight"), "{message}");
    let message = said(builder.get((24, 31), "visual_projection.weight"));
    assert!(
        message.contains("[24, 32]") && message.contains("[24, 31]"),
        "{message}"
    );
    assert!(builder.contains_tensor("text_projection.weight"));
    assert!(!builder.contains_tensor("text_projection.bias"));
}

#[test]
fn weights_that_are_variables_get_gradients_through_layers_of_candle() {
    let weights = Arc::new(weights().trainable());
    let layer = candle_nn::linear_no_bias(32, 24, weights.var_builder().pp(NAME)).expect("there");
    let ones = Tensor::ones((1, 32), DType::F32, &Device::Cpu).expect("a tensor");
    let sum = layer.forward(&ones).and_then(|y| y.sum_all());
    let gradients = sum.and_then(|sum| sum.backward()).expect("backward");
    let variable = &weights.variables()["visual_projection.weight"];
    let gradient = gradients.get(variable.as_tensor()).expect("a gradient");
    let total = gradient.sum_all().and_then(|sum| sum.to_scalar::<f32>());
    assert_eq!(total.expect("a number"), 24.0 * 32.0);
}

#[test]
fn clip_of_candle_transformers_gives_the_numbers_of_transformers_on_our_weights() {
    let found = crate::candle_clip::difference_from_transformers();
    let found = found.expect("it runs");
    assert!(found < 1e-4, "{found:e}");
}
