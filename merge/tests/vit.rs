//! Classifiers of timm: parts and sizes, merges that see queries, keys and values apart, and what a configuration tells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::Raw;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::layouts::{self, GramNames, ModelRecord, Part, VitPool};
use merge::progress::Silent;
use merge::random::Draws;
use merge::{Checkpoint, Error, MergePlan, MergeRecipe, Result};
use tempfile::TempDir;

use crate::clip::opened;

/// A form of the golden set of this repository.
fn form(name: &str) -> PathBuf {
    fixtures::path(&format!("vit/{name}"))
}

#[test]
fn every_parameter_of_every_form_has_its_part() {
    for (name, heads, rows) in [
        ("token", 3, Part::PositionTables),
        ("mean", 2, Part::PositionTables),
        ("registers", 2, Part::PositionTables),
        ("token_registers", 4, Part::PositionTables),
        ("clip", 3, Part::PositionTables),
    ] {
        let file = opened(&form(name));
        let layout = layouts::detect(&file).expect("a layout");
        assert_eq!(layout.name(), "vit", "{name}");
        let sizes = layout.dimensions();
        let stack = sizes.only_stack().expect("a stack");
        assert_eq!((stack.n_blocks, stack.n_heads), (2, Some(heads)), "{name}");
        assert_eq!(
            (sizes.patch_size, sizes.image_size),
            (Some(8), Some(24)),
            "{name}"
        );
        let counts = layouts::count(&file, layout.as_ref());
        assert_eq!(counts.part(Part::Other).n_tensors, 0, "{name}");
        assert_eq!(counts.part(rows).n_tensors, 1, "{name}");
        assert_eq!(counts.part(Part::Heads).n_tensors, 2, "{name}");
        let names = GramNames::of(&file, layout.as_ref());
        // Four of a block, and the classifier.
        assert_eq!(names.iter().count(), 9, "{name}");
        assert!(names.is_owned("blocks.1.attn.qkv").is_some(), "{name}");
        // Merges see other names, and look for the same matrices.
        let (apart, packing) = layouts::apart(Arc::new(file)).expect("a view");
        assert!(packing.is_some(), "{name}");
        let layout = layouts::detect(&apart).expect("a layout");
        assert_eq!(layout.name(), "vit", "{name}");
        assert_eq!(GramNames::of(&apart, layout.as_ref()), names, "{name}");
    }
}

#[test]
fn a_key_beyond_the_grammar_is_named() {
    let file = opened(&form("token"));
    let layout = layouts::detect(&file).expect("a layout");
    let error = layout
        .role("blocks.0.attn.q_norm.weight")
        .expect_err("unknown");
    assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
}

/// Two relatives and their base, packed as in files and with queries, keys and values apart.
struct Family {
    folder: TempDir,
}

const MEMBERS: [&str; 3] = ["base", "one", "two"];

impl Family {
    fn new() -> Self {
        let family = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let source = fixtures::tensors(&form("token").join("model.safetensors"));
        for (seed, member) in MEMBERS.into_iter().enumerate() {
            let mut packed = BTreeMap::new();
            let mut apart = BTreeMap::new();
            for (key, raw) in &source {
                let mut values: Vec<f32> = raw.values().iter().map(|value| *value as f32).collect();
                Draws::new(seed as u64, key).add_normal(0.02, 0, &mut values);
                let of = |values: &[f32], rows: usize| Raw {
                    dtype: safetensors::Dtype::F32,
                    shape: std::iter::once(rows)
                        .chain(raw.shape.iter().skip(1).copied())
                        .collect(),
                    bytes: values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect(),
                };
                let whole = raw.shape.first().copied().unwrap_or(1);
                packed.insert(key.clone(), of(&values, whole));
                match key.contains(".qkv.") {
                    false => drop(apart.insert(key.clone(), of(&values, whole))),
                    true => {
                        let parts = values.chunks_exact(values.len() / 3);
                        for (name, part) in ["q_proj", "k_proj", "v_proj"].iter().zip(parts) {
                            apart.insert(key.replace("qkv", name), of(part, whole / 3));
                        }
                    }
                }
            }
            fixtures::write(&family.path("packed", member), &packed);
            fixtures::write(&family.path("apart", member), &apart);
        }
        family
    }

    fn path(&self, form: &str, member: &str) -> PathBuf {
        self.folder
            .path()
            .join(format!("{form}-{member}.safetensors"))
    }

    fn merged(&self, method: &str, form: &str) -> Result<Checkpoint> {
        let path = |member: &str| self.path(form, member).display().to_string();
        let parameters = match method {
            "ties" => "{ weight: 0.75, density: 0.5 }",
            _ => "{}",
        };
        let yaml = format!(
            "merge_method: {method}\nbase_model: {}\nmodels:\n- {{ model: {}, parameters: {parameters} }}\n\
             - {{ model: {}, parameters: {parameters} }}\n",
            path("base"),
            path("one"),
            path("two")
        );
        let recipe = MergeRecipe::parse(&yaml, Path::new("test"))?;
        let (plan, _) = MergePlan::resolve(&recipe)?;
        let out = self
            .folder
            .path()
            .join(format!("{method}.{form}.safetensors"));
        execute(
            &plan,
            &WriteOptions::new(&out),
            &RunOptions::default(),
            &Silent,
        )?;
        Ok(opened(&out))
    }
}

#[test]
fn methods_that_work_by_matrix_see_queries_keys_and_values_apart() {
    let family = Family::new();
    for method in ["ties", "iso_c", "tsv_m", "wudi", "knots"] {
        let packed = family.merged(method, "packed").expect("merged");
        // The result is packed as the files were.
        assert!(packed.get("blocks.0.attn.qkv.weight").is_some(), "{method}");
        assert!(
            packed.get("blocks.0.attn.q_proj.weight").is_none(),
            "{method}"
        );
        let apart = family.merged(method, "apart").expect("merged");
        let (packed, _) = layouts::apart(Arc::new(packed)).expect("a view");
        assert_eq!(packed.tensors().count(), apart.tensors().count());
        for (key, info) in apart.tensors() {
            assert_eq!(packed.get(key), Some(info), "{method} {key}");
            assert_eq!(
                packed.read_all(key).ok(),
                apart.read_all(key).ok(),
                "{method} {key}"
            );
        }
    }
}

#[test]
fn a_merge_of_wrapped_files_is_wrapped_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = fixtures::tensors(&form("registers").join("model.safetensors"));
    let wrapped: BTreeMap<String, Raw> = (source.into_iter())
        .map(|(key, raw)| (format!("module.{key}"), raw))
        .collect();
    let path = folder.path().join("model.safetensors");
    fixtures::write(&path, &wrapped);
    let yaml = format!(
        "merge_method: linear\nmodels:\n- {{ model: {0}, parameters: {{ weight: 1 }} }}\n\
         - {{ model: {0}, parameters: {{ weight: 1 }} }}\n",
        path.display()
    );
    let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let out = folder.path().join("merged.safetensors");
    execute(
        &plan,
        &WriteOptions::new(&out),
        &RunOptions::default(),
        &Silent,
    )
    .expect("written");
    assert_eq!(fixtures::tensors(&out), wrapped);
}

#[test]
fn a_merge_carries_what_the_configuration_beside_its_models_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let yaml = format!(
        "merge_method: linear\nmodels:\n- {{ model: {0}, parameters: {{ weight: 1 }} }}\n\
         - {{ model: {0}, parameters: {{ weight: 3 }} }}\n",
        form("mean").display()
    );
    let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let out = folder.path().join("merged.safetensors");
    execute(
        &plan,
        &WriteOptions::new(&out),
        &RunOptions::default(),
        &Silent,
    )
    .expect("written");
    let record = ModelRecord::of(&opened(&out)).expect("a record");
    assert_eq!(record.heads, Some(2));
    assert_eq!(record.vit.expect("facts").pool, Some(VitPool::Mean));
    assert!(record.image_mean.is_some());
}
