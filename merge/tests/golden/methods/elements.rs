//! Methods that make each element of its task vectors, with what they learn of all tensors, and masks of tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixtures::{Case, Raw};
use merge::execute::{RunOptions, execute, write_masks};
use merge::io::OpenOptions;
use merge::progress::Silent;
use merge::restore::{MaskRecord, Restore};
use serde_json::json;

use super::Written;

fixtures::golden_tests! {
    package: "merge", set: "methods",
    consensus_is_that_of_the_published_program: "consensus_ta" => consensus,
    masks_and_models_of_tall_masks_are_those_of_the_published_program: "tall_mask" => tall_masks,
    pcb_is_that_of_the_published_programs: "pcb" => pcb,
    unified_and_restored_models_of_emr_are_those_of_the_published_program: "emr" => emr,
    localize_and_stitch_is_that_of_the_published_program: "localize_and_stitch" => localize,
}

fn consensus(case: &Case) {
    Written::new(case, "consensus")
        .number("tall_lambda", "tall_lambda")
        .number("min_models", "k")
        .number("lambda", "scale")
        .check();
}

fn pcb(case: &Case) {
    let agreement = match case.param("variant") {
        Some("root") => "raw",
        Some("vision") => "normalized",
        other => panic!("a variant that this test does not know: {other:?}"),
    };
    Written::new(case, "pcb")
        .number("ratio", "pcb_ratio")
        .number("clamp", "clamp")
        .number("weight", "scale")
        .with("agreement", json!(agreement))
        .check();
}

fn localize(case: &Case) {
    assert_eq!(case.param("mode"), Some("dataless"));
    let written = Written::new(case, "localize_and_stitch");
    written.number("sparsity", "sparsity").check();
}

fn tall_masks(case: &Case) {
    let written = Written::new(case, "tall_masks").number("tall_lambda", "tall_lambda");
    let (masks, factors) = masks_of(&written);
    assert_eq!(factors, vec![1.0; written.n_models()]);
    if !case["aux"].is_null() {
        check_masks(&masks, &case.tensors("aux"), "");
    }
    if let Some(task) = case.param("restore") {
        written.check_tensors(&restored(&written, task));
    }
}

fn emr(case: &Case) {
    let written = Written::new(case, "emr");
    let (masks, factors) = masks_of(&written);
    match (case.param("output"), case.param("task")) {
        (Some("unified"), _) => written.check(),
        (Some("task"), Some(task)) => written.check_tensors(&restored(&written, task)),
        other => panic!("an output that this test does not know: {other:?}"),
    }
    if case["aux"].is_null() {
        return;
    }
    let aux = case.tensors("aux");
    check_masks(&masks, &aux, "mask.");
    let by_elements = Written::new(case, "emr").with("rescale_by", json!("elements"));
    for (found, name) in [
        (factors, "rescalers"),
        (masks_of(&by_elements).1, "rescalers_paper"),
    ] {
        let differs = fixtures::first_difference(&found, &aux[name].values(), 1e-9, 0.0);
        assert_eq!(differs, None, "{name}");
    }
}

/// The masks of a merge by the letter of the model and the name of the tensor, each an element a bit, and the factors.
fn masks_of(written: &Written<'_>) -> (BTreeMap<String, Vec<u8>>, Vec<f64>) {
    let target = written.target("masks.safetensors");
    write_masks(&written.plan(), &target, &RunOptions::default(), &Silent).expect("masks");
    let file = merge::io::open(&target.path, &OpenOptions::default()).expect("opens");
    let record = MaskRecord::of(&file).expect("a record");
    let masks = fixtures::tensors(&target.path).into_iter();
    let masks = masks.map(|(name, raw)| {
        let (task, tensor) = name.split_once('.').expect("a task");
        let letter = written.letter(task.parse().expect("a number"));
        (format!("{letter}.{tensor}"), raw.bytes)
    });
    (masks.collect(), record.factors)
}

/// Every mask is the expected one.
fn check_masks(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Raw>, prefix: &str) {
    let mut n = 0;
    for (name, bits) in found {
        let expected = &expected[&format!("{prefix}{name}")];
        let bit = |index: usize| bits[index / 8] >> (index % 8) & 1;
        let found: Vec<u8> = (0..expected.bytes.len()).map(bit).collect();
        assert!(found == expected.bytes, "{name}");
        n += 1;
    }
    assert!(n > 0, "masks");
}

/// One task's model, from the merged file, the masks and the base.
fn restored(written: &Written<'_>, letter: &str) -> BTreeMap<String, Raw> {
    written.merged();
    let open = |path: &std::path::Path| {
        let file = merge::io::open(path, &OpenOptions::default());
        Arc::new(file.expect("opens"))
    };
    let number = (0..written.n_models()).find(|&index| written.letter(index) == letter);
    let restore = Restore {
        merged: open(&written.target("merged.safetensors").path),
        masks: open(&written.target("masks.safetensors").path),
        base: open(written.base()),
        task: number.expect("a model").to_string(),
    };
    let plan = restore.plan(|dtype| dtype, &Silent).expect("a plan");
    let target = written.target("task.safetensors");
    execute(&plan, &target, &RunOptions::default(), &Silent).expect("runs");
    fixtures::tensors(&target.path)
}
