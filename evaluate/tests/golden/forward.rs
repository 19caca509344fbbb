//! Forward passes against the published program: every tensor that it recorded, through the same
//! code as `vlmerge forward`.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::forward::{self, Given};
use evaluate::models::{self, Model, Overrides, ShallowAttention};
use fixtures::{Case, Raw, Set, first_difference};
use merge::Checkpoint;
use merge::convert::Conversion;
use merge::execute::RunOptions;
use merge::progress::Silent;

use super::models::{open, overrides, weights_of};

fixtures::golden_tests! {
    package: "evaluate", set: "vl_merging",
    every_output_of_every_architecture_is_that_of_the_published_program: "forward" => outputs,
    a_model_brought_to_another_image_size_computes_as_the_published_program_does:
        "forward_after_convert" => converted,
}

/// Runs passes of a model on the tensors of a file, and returns all outputs, inner ones too.
pub fn outputs_of(
    model: &dyn Model,
    inputs: &Checkpoint,
    passes: &[String],
) -> BTreeMap<String, Tensor> {
    let taken = model.named_passes().expect("a family with passes").inputs();
    let given = Given::open(inputs, taken, &Device::Cpu, DType::F32).expect("inputs");
    let outcome = forward::run(model, &given, passes, true);
    outcome.expect("the passes run").tensors
}

/// Checks that an output has the expected shape, and values within the tolerance of the case. `of` names the
/// tolerance, if the case has several.
pub fn assert_close(case: &Case, of: &str, name: &str, found: &Tensor, expected: &Raw) {
    assert_eq!(found.dims(), expected.shape, "{name}");
    let found = super::models::values(found);
    let (rtol, atol) = (case.tolerance(of, "rtol"), case.tolerance(of, "atol"));
    let difference = first_difference(&found, &expected.values(), rtol, atol);
    assert_eq!(difference, None, "{name}");
}

/// Checks that every expected tensor is there and equal within the case's tolerance.
pub fn check(case: &Case, found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Raw>) {
    assert!(!expected.is_empty(), "a comparison");
    for (name, expected) in expected {
        let found = found
            .get(name)
            .unwrap_or_else(|| panic!("no output {name}"));
        assert_close(case, "", name, found, expected);
    }
}

/// Opens a checkpoint and runs its passes.
fn run(
    checkpoint: &Arc<Checkpoint>,
    overrides: &Overrides,
    inputs: &Checkpoint,
    passes: &[String],
) -> BTreeMap<String, Tensor> {
    let (device, dtype) = (Device::Cpu, DType::F32);
    let opened = models::open(Arc::clone(checkpoint), overrides, &device, dtype);
    let model = opened.expect("the model loads").model;
    outputs_of(model.as_ref(), inputs, passes)
}

/// Facts that the keys of an architecture do not tell.
fn overrides_of(case: &Case) -> Overrides {
    Overrides {
        shallow_attention: match case.text("arch") {
            "plain" => Some(ShallowAttention::Joint),
            _ => None,
        },
        ..overrides(&case.set().config())
    }
}

fn outputs(case: &Case) {
    let found = run(
        &weights_of(case),
        &overrides_of(case),
        &open(&case.file("inputs")),
        &[],
    );
    check(case, &found, &case.tensors("expected"));
}

/// The published program's text inputs, and the image that the expected file holds.
fn converted(case: &Case) {
    let overrides = overrides(&case.set().config());
    let conversion = Conversion {
        image_size: case["image_size"].as_u64().map(|size| size as usize),
        text_table_len: overrides.text_table_len,
        ..Conversion::default()
    };
    let source = open(&case.file("input"));
    let converted = conversion.in_memory(source, &RunOptions::default(), &Silent);
    let mut expected = case.tensors("expected");
    let texts = Set::open("vl_merging").tensors(&text_inputs(case));
    let mut inputs: BTreeMap<String, Raw> = (texts.into_iter())
        .filter(|(name, _)| name.starts_with("text_"))
        .collect();
    let image = expected.remove("image").expect("the image is there");
    inputs.insert("image".to_owned(), image);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("inputs.safetensors");
    fixtures::write(&file, &inputs);
    let passes = ["image_ft", "vl"].map(str::to_owned);
    let found = run(
        &converted.expect("converted"),
        &overrides,
        &open(&file),
        &passes,
    );
    check(case, &found, &expected);
}

/// The inputs of the set's forward passes: a conversion's case does not name them again.
fn text_inputs(case: &Case) -> String {
    let cases = case.set().cases("forward");
    let inputs = cases.first().map(|case| case.text("inputs").to_owned());
    inputs.expect("a forward pass")
}

#[test]
fn every_key_is_used_but_those_that_no_pass_reads() {
    for case in Set::open("vl_merging").cases("forward") {
        let (device, dtype) = (Device::Cpu, DType::F32);
        let opened = models::open(weights_of(&case), &overrides_of(&case), &device, dtype);
        let report = opened.expect("the model loads").weights.report();
        assert!(report.fresh.is_empty());
        assert_eq!(
            report.unused,
            [
                "temporal_relative_position_bias_table",
                "text_embeddings.position_embeddings.weight"
            ],
            "{}",
            case.id()
        );
    }
}
