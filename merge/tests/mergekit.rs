//! Recipes of mergekit run as they stand, and give what mergekit 0.1.5 gave in float32
//! (`tests/mergekit_reference.py` made the fixtures).

use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::recipe::RandomSource;
use merge::{MergePlan, MergeRecipe};

use fixtures::{self as fixture, Raw};

/// Of the largest value of a tensor; what float32 leaves after a few operations.
const TOLERANCE: f64 = 1e-6;

/// A recipe of the fixtures, with its models found whatever the working directory.
fn recipe(name: &str) -> MergeRecipe {
    let path = fixture::path(&format!("mergekit/{name}.yaml"));
    let mut recipe = MergeRecipe::open(&path).expect("a recipe of mergekit");
    let found = |model: &Path| fixture::path("mergekit").join(model);
    for model in recipe.models.iter_mut().chain(&mut recipe.base_model) {
        model.model = found(&model.model);
    }
    for source in recipe
        .slices
        .iter_mut()
        .flat_map(|slice| &mut slice.sources)
    {
        source.value.model = found(&source.value.model);
    }
    recipe
}

fn merged(recipe: &MergeRecipe) -> std::collections::BTreeMap<String, Raw> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("merged.safetensors");
    let (plan, _) = MergePlan::resolve(recipe).expect("resolves");
    let write = WriteOptions {
        sync: false,
        ..WriteOptions::new(&target)
    };
    execute(
        &plan,
        &write,
        &RunOptions::default(),
        &merge::progress::Silent,
    )
    .expect("merges");
    fixture::tensors(&target)
}

fn names() -> Vec<String> {
    let folder = std::fs::read_dir(fixture::path("mergekit")).expect("fixtures are there");
    let mut names: Vec<String> = folder
        .map(|entry| PathBuf::from(entry.expect("readable").file_name()))
        .filter(|name| {
            name.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .map(|name| {
            name.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_recipe_gives_what_mergekit_gave() {
    let names = names();
    assert!(names.len() > 30, "{} recipes", names.len());
    for name in names {
        let expected = fixture::tensors(&fixture::path(&format!("mergekit/{name}.safetensors")));
        let found = merged(&recipe(&name));
        assert!(found.keys().eq(expected.keys()), "{name}: other tensors");
        for (key, expected) in &expected {
            let found = &found[key];
            assert_eq!(
                (found.dtype, &found.shape),
                (expected.dtype, &expected.shape),
                "{name} {key}"
            );
            let expected = expected.values();
            let largest = expected
                .iter()
                .fold(0.0, |max: f64, value| max.max(value.abs()));
            let difference =
                fixture::first_difference(&found.values(), &expected, 0.0, TOLERANCE * largest);
            assert_eq!(difference, None, "{name} {key}");
        }
    }
}

#[test]
fn every_method_of_mergekit_is_among_the_recipes() {
    let methods: Vec<String> = names()
        .iter()
        .map(|name| recipe(name).merge_method)
        .collect();
    for method in merge::methods::NAMES {
        let described = merge::methods::by_name(method, &Default::default(), false);
        // Methods of mergekit pass parameters of others over.
        let ours = ["interpolate", "arithmetic", "regmean", "mats", "fisher"];
        let is_ours =
            ours.contains(&method) || described.expect("a method").refuses_foreign_parameters();
        assert!(
            is_ours || methods.iter().any(|name| name == method),
            "{method}"
        );
    }
}

#[test]
fn masks_by_element_differ_from_mergekits_and_thin_as_much() {
    let mut recipe = recipe("dare_plain");
    let in_a_row = merged(&recipe);
    recipe.rng = RandomSource::Counter;
    let keyed = merged(&recipe);
    assert_ne!(in_a_row, keyed);
    recipe.seed += 1;
    assert_ne!(merged(&recipe), keyed);
    recipe.seed -= 1;
    assert_eq!(merged(&recipe), keyed);
    // The base's own values stay where all three models were dropped: (1 − 0.5)(1 − 0.6)(1 − 0.7) of
    // the elements, and those that no model changed.
    let base = fixture::tensors(&fixture::path("mergekit/base/model.safetensors"));
    let untouched = |merged: &std::collections::BTreeMap<String, Raw>| {
        let pairs = merged.iter().flat_map(|(key, raw)| {
            let pairs: Vec<(f64, f64)> = raw.values().into_iter().zip(base[key].values()).collect();
            pairs
        });
        let (mut same, mut all) = (0, 0);
        for (merged, base) in pairs {
            same += usize::from(merged == base);
            all += 1;
        }
        same as f64 / f64::from(all)
    };
    // 0.6 · 0.52 · 0.44 = 0.137 with a fifth of each task vector zero; three standard errors of
    // 6,400 draws are 0.013.
    for merged in [&in_a_row, &keyed] {
        assert!(
            (untouched(merged) - 0.137).abs() < 0.02,
            "{}",
            untouched(merged)
        );
    }
}
