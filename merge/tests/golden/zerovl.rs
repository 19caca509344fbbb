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
        (Some(_), Some(key)) => described(&case.json("expected")[key]["tensors"]),
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

/// Through the conversion of a whole checkpoint: the case's, or one made around its table.
fn resample(case: &Case) {
    let name = |field| case.param(field).expect("a name");
    let (table, target) = (name("source"), name("target"));
    let size = |field| case.count(field);
    let folder = tempfile::tempdir().expect("a folder");
    let (path, to) = match (size("image_to"), size("grid_from"), size("grid_to")) {
        (Some(to), ..) => (case.file("input"), to),
        (None, Some(from), Some(to)) => {
            let path = folder.path().join("model.safetensors");
            around(&case.tensors("input")[table], from, &path);
            (path, PATCH * to)
        }
        _ => panic!("no sizes"),
    };
    let tensors = fixtures::tensors(&path);
    let conversion = Conversion {
        image_size: Some(to),
        with_buffers: true,
        ..Conversion::default()
    };
    let source = Arc::new(opened(&path));
    let resized = conversion.in_memory(source, &RunOptions::default(), &Silent);
    let resized = resized.expect("it is resized");
    let expected = &case.tensors("expected")[target];
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let found = values(&resized, POSITIONS);
    let difference = fixtures::first_difference(&found, &expected.values(), rtol, atol);
    assert_eq!(difference, None);
    let info = resized.require(POSITIONS).expect("there");
    assert_eq!(info.shape, expected.shape);
    // All else is as it was, the buffer of text positions too.
    assert_eq!(resized.tensors().count(), tensors.len());
    for (name, raw) in tensors.iter().filter(|(name, _)| *name != POSITIONS) {
        let bytes = resized.read_all(name).expect("it reads");
        assert_eq!(bytes, raw.bytes, "{name}");
    }
}

const POSITIONS: &str = "image_encoder.model.model.pos_embed";

/// Side of a patch of the models that are made.
const PATCH: usize = 2;

/// Writes a small model with this table of positions for a grid of `side` patches a side.
fn around(table: &Raw, side: usize, path: &Path) {
    let width = *table.shape.last().expect("a width");
    let tower = |width| TowerSizes {
        n_blocks: 1,
        width,
        n_heads: 1,
        ffn_width: 4,
    };
    let spec = ZerovlSpec {
        sizes: ZerovlSizes {
            image: tower(width),
            text: tower(4),
            patch_size: PATCH,
            image_size: PATCH * side,
            vocabulary: 3,
            text_len: 4,
            n_token_types: 2,
            joint_width: 3,
        },
        has_temperature: false,
        with_buffers: true,
    };
    write(&synthesis(spec), path);
    let mut tensors = fixtures::tensors(path);
    tensors.insert(POSITIONS.to_owned(), table.clone());
    fixtures::write(path, &tensors);
}
