//! Recipes as texts: several documents, every key, and writing them again.

use std::path::Path;

use fixtures as fixture;
use merge::MergeRecipe;

use super::{Folder, first};

#[test]
fn documents_build_on_each_other_in_any_order() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: linear\nparameters: {weight: 1}\nmodels: [first, second]\n---\nname: second\n\
             merge_method: task_arithmetic\nbase_model: <base>\nmodels: [{model: first, parameters: {weight: \
             2}}]\n---\nname: first\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <b>]",
        )
        .expect("merges");
    // first = 3, second = 1 + 2 (3 − 1) = 5, their mean = 4.
    assert_eq!(first(&merged, "embed.weight"), 4.0);
    let left: Vec<_> = std::fs::read_dir(folder.0.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn documents_in_a_circle_or_in_vain_are_refused_by_name() {
    let folder = Folder::three();
    let document = |name: &str, of: &str| {
        format!("name: {name}\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{of}]\n")
    };
    let circle = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [one]\n---\n{}---\n{}",
        document("one", "two"),
        document("two", "one")
    );
    assert!(folder.fault(&circle).contains("one -> two -> one"));
    let vain = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [<a>]\n---\n{}",
        document("x", "<b>")
    );
    assert!(folder.fault(&vain).contains("`x` is used by no other"));
    let twice = format!("{}---\n{}", document("x", "<a>"), document("x", "<b>"));
    assert!(
        folder
            .fault(&twice)
            .contains("two documents are called `x`")
    );
}

#[test]
fn a_recipe_with_everything_survives_being_written() {
    let yaml = "name: x\nmerge_method: ties\nslices:\n- sources:\n  - {model: p, layer_range: [0, 2], parameters: \
                {weight: 1}}\n  parameters: {density: [{filter: mlp, value: [0.1, 1]}, {value: 0.3}]}\nbase_model: \
                q\nlayers: m.l\nparameters: {rescale: true, weight: {glob: '*', value: 1}}\ndtype: \
                float32\nout_dtype: bfloat16\non_missing: skip\nrng: mergekit\nseed: 3\ntokenizer_source: \
                union\n---\nmerge_method: linear\nmodels: [x, {model: w, root: z, rename: [{from: a, to: b}]}]";
    let recipe = MergeRecipe::parse(yaml, Path::new("test")).expect("valid");
    assert_eq!(recipe.earlier.len(), 1);
    let again = recipe.to_yaml().expect("written");
    assert_eq!(
        MergeRecipe::parse(&again, Path::new("test")).expect(&again),
        recipe
    );
}

#[test]
fn every_key_of_a_recipe_is_in_its_document() {
    let said = MergeRecipe::parse("nothing: 1", Path::new("test")).expect_err("no such key");
    let said = said.to_string();
    let (_, keys) = said.split_once("expected one of").expect("a list of keys");
    let keys = keys.lines().next().unwrap_or_default();
    let keys: Vec<&str> = keys.split(',').map(str::trim).collect();
    assert!(keys.len() > 15, "{keys:?}");
    let document = std::fs::read_to_string(fixture::path("../docs/recipes.md")).expect("readable");
    for key in keys {
        assert!(
            document.contains(&format!("| `{key}` | ")),
            "{key} is not in docs/recipes.md"
        );
    }
}
