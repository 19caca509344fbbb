//! ZeroVL's checkpoints in every container, and its position tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::{Case, Raw};
use merge::Role;
use merge::convert::Conversion;
use merge::execute::RunOptions;
use merge::layouts::{self, TowerSizes, ZerovlSizes, ZerovlSpec};
use merge::progress::Silent;

use crate::zerovl::{opened, synthesis, values, write};

fixtures::golden_tests! {
    package: "merge", set: "zerovl",
    checkpoints_of_every_container_hold_the_published_tensors: "load" => load,
    position_tables_are_resampled_as_published: "pos_embed" => resample,
}

/// Every tensor bit for bit, under its key without `module.`, and every key known to the layout.
fn load(case: &Case) {
    let checkpoint = opened(&case.file("input"));
    let layout = layouts::detect(&checkpoint).expect("a layout");
    assert_eq!(layout.name(), "zerovl");
    let has_module = case["params"]["module_prefix"].as_bool().unwrap_or(false);
    let mut found = BTreeMap::new();
    for (key, info) in checkpoint.tensors() {
        assert_eq!(key.starts_with("module."), has_module, "{key}");
        let name = layouts::without_module(key);
        match layout.role(key).expect("a known key") {
            Role::Shared(slot) => assert_eq!(slot.key, name),
            Role::Derived => assert!(name.ends_with("position_ids")),
            other => panic!("{key}: {other:?}"),
        }
        let bytes = checkpoint.read_all(key).expect("it reads");
        found.insert(
            name.to_owned(),
            (info.shape.clone(), fixtures::sha256_of(&bytes)),
        );
    }
    let expected = match (case.file_if_any("expected"), case["key"].as_str()) {
        (Some(path), Some(key)) => described(&fixtures_json(&path)[key]["tensors"]),
        (expected, _) => {
            let path = expected.unwrap_or_else(|| case.file("input"));
            let mut tensors = raw(fixtures::tensors(&path));
            if case["params"]["temperature"].as_bool() == Some(false) {
                tensors.remove("loss.temperature");
            }
            tensors
        }
    };
    assert_eq!(found, expected);
    if let Some(container) = case.param("container") {
        assert_eq!(checkpoint.info().root, container);
    }
}

type Listing = BTreeMap<String, (Vec<usize>, String)>;

fn fixtures_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("there");
    serde_json::from_str(&text).expect("JSON")
}

fn raw(tensors: BTreeMap<String, Raw>) -> Listing {
    let listed = tensors.into_iter();
    listed
        .map(|(key, raw)| (key, (raw.shape.clone(), raw.sha256())))
        .collect()
}

fn described(tensors: &serde_json::Value) -> Listing {
    let tensors = tensors.as_object().expect("tensors");
    let of = |value: &serde_json::Value| {
        let shape = fixtures::integers(&value["shape"]);
        let shape = shape.iter().map(|&axis| axis as usize).collect();
        (shape, fixtures::text(&value["sha256"]).to_owned())
    };
    tensors
        .iter()
        .map(|(key, value)| (key.clone(), of(value)))
        .collect()
}

/// Through the conversion of a whole checkpoint whose table is the case's.
fn resample(case: &Case) {
    let input = case.tensors("input");
    let (source, target) = (case.param("source"), case.param("target"));
    let (source, target) = (source.expect("a name"), target.expect("a name"));
    let grid = |name| case.count(name).expect("a grid");
    let (from, to) = (grid("grid_from"), grid("grid_to"));
    let table = &input[source];
    let width = *table.shape.last().expect("a width");
    let spec = ZerovlSpec {
        sizes: ZerovlSizes {
            image: TowerSizes {
                n_blocks: 1,
                width,
                n_heads: 1,
                ffn_width: 4,
            },
            text: TowerSizes {
                n_blocks: 1,
                width: 4,
                n_heads: 1,
                ffn_width: 4,
            },
            patch_size: 2,
            image_size: 2 * from,
            vocabulary: 3,
            text_len: 4,
            n_token_types: 2,
            joint_width: 3,
        },
        has_temperature: false,
        with_buffers: true,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(&synthesis(spec), &path);
    let key = "image_encoder.model.model.pos_embed";
    let mut tensors = fixtures::tensors(&path);
    tensors.insert(key.to_owned(), table.clone());
    fixtures::write(&path, &tensors);
    let conversion = Conversion {
        image_size: Some(2 * to),
        with_buffers: true,
        ..Conversion::default()
    };
    let source = Arc::new(opened(&path));
    let resized = conversion.in_memory(source, &RunOptions::default(), &Silent);
    let resized = resized.expect("it is resized");
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let difference =
        fixtures::first_difference(&values(&resized, key), &input[target].values(), rtol, atol);
    assert_eq!(difference, None);
    assert_eq!(
        resized.require(key).expect("there").shape,
        input[target].shape
    );
    // All else is as it was, the buffer of text positions too.
    assert_eq!(resized.tensors().count(), tensors.len());
    for (name, raw) in tensors.iter().filter(|(name, _)| *name != key) {
        assert_eq!(
            &resized.read_all(name).expect("it reads"),
            &raw.bytes,
            "{name}"
        );
    }
}
