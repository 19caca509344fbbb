//! Classifiers of timm run on given pixels and on pictures, case by case of `fixtures/vit/manifest.json`.

use std::path::Path;

use candle_core::{DType, Device};
use evaluate::images::{self, Transform};
use evaluate::models::{self, Opened, Overrides};
use evaluate::{Error, ModelFault};
use fixtures::Case;

use crate::golden::forward::{check, outputs_of};
use crate::golden::models::open as checkpoint;

fixtures::golden_tests! {
    package: "evaluate", set: "vit",
    forward_passes_are_those_of_timm: "forward" => forward,
    pictures_become_the_pixels_that_timm_makes: "preprocess" => preprocess,
}

fn open(path: &Path, overrides: &Overrides) -> evaluate::Result<Opened> {
    models::open(checkpoint(path), overrides, &Device::Cpu, DType::F32)
}

fn opened(case: &Case) -> Opened {
    let folder = case.set().path(case.text("model"));
    open(&folder, &Overrides::default()).expect("a model")
}

fn forward(case: &Case) {
    let opened = opened(case);
    let inputs = checkpoint(&case.file("input"));
    let found = outputs_of(opened.model.as_ref(), &inputs, &["image".to_owned()]);
    check(case, &found, &case.tensors("expected"));
}

fn preprocess(case: &Case) {
    let opened = opened(case);
    let bytes = std::fs::read(case.file("input")).expect("a picture");
    let picture = images::decode(&bytes).expect("a picture");
    let found = Transform::new(&opened.model.input().image).apply(&picture);
    let expected = case.tensors("expected")["pixel_values"].values();
    let found: Vec<f64> = found.into_iter().map(f64::from).collect();
    assert_eq!(found.len(), expected.len());
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    assert_eq!(
        fixtures::first_difference(&found, &expected, rtol, atol),
        None
    );
}

#[test]
fn what_nothing_tells_of_a_classifier_is_asked_for_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bare.safetensors");
    let source = fixtures::path("vit/token/model.safetensors");
    std::fs::copy(source, &path).expect("copied");
    let mut overrides = Overrides::default();
    let asked = |overrides: &Overrides, flag: &str| {
        let error = open(&path, overrides).err().expect("refused");
        assert!(error.to_string().contains(flag), "{error}");
        let is_unknown = matches!(error, Error::Model(ModelFault::UnknownSize { .. }));
        assert!(is_unknown, "{error}");
    };
    asked(&overrides, "--heads");
    overrides.n_heads = Some(3);
    asked(&overrides, "--activation");
    overrides.activation = Some(merge::layouts::ClipActivation::Gelu);
    asked(&overrides, "--image-mean");
    overrides.image_mean = Some([0.5; 3]);
    overrides.image_deviation = Some([0.5; 3]);
    let opened = open(&path, &overrides).expect("a model");
    assert!(opened.weights.report().unused.is_empty());
    assert!(opened.model.dual().is_err());
}
