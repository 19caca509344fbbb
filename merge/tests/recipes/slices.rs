//! Slices: layers of several models one after the other.

use super::{Folder, first};

#[test]
fn a_slice_may_have_a_base_of_its_own() {
    let folder = Folder::three();
    let merged = folder.merge(
        "merge_method: task_arithmetic\nparameters: {weight: 1}\nslices:\n- base_model: <base>\n  residual_weight: 1\n  \
         sources: [{model: <a>, layer_range: [0, 1]}, {model: <base>, layer_range: [0, 1]}]\n- base_model: <a>\n  sources: \
         [{model: <b>, layer_range: [1, 2]}, {model: <a>, layer_range: [1, 2]}]",
    );
    let merged = merged.expect("merges");
    // base + (a - base) and a + (b - a).
    assert_eq!(first(&merged, "layers.0.norm.weight"), 2.0);
    assert_eq!(first(&merged, "layers.1.norm.weight"), 4.0);
}

#[test]
fn slices_stack_layers_and_take_the_ends_from_the_first_and_the_last() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 2]}]\n- sources: \
             [{model: <b>, layer_range: [1, 2]}]",
        )
        .expect("merges");
    assert_eq!(merged.len(), 8);
    let firsts = [
        "embed.weight",
        "layers.0.norm.weight",
        "layers.2.norm.weight",
        "head.weight",
    ];
    assert_eq!(firsts.map(|key| first(&merged, key)), [2.0, 2.0, 4.0, 4.0]);
    let plan = folder
        .plan("merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 1]}]")
        .expect("resolves");
    let dropped: Vec<&str> = plan
        .dropped()
        .iter()
        .map(|d| d.tensor.key.as_str())
        .collect();
    assert_eq!(dropped, ["layers.1.mlp.fc.weight", "layers.1.norm.weight"]);
}

#[test]
fn the_only_layer_of_a_model_may_be_put_in_twice() {
    let folder = Folder::three();
    folder.model("small", &super::layers(1, 3.0));
    let merged = folder.merge(
        "merge_method: passthrough\nslices:\n- sources: [{model: <small>, layer_range: [0, 1]}]\n- sources: \
         [{model: <small>, layer_range: [0, 1]}]",
    );
    let merged = merged.expect("merges");
    assert_eq!(merged.len(), 6);
    assert_eq!(first(&merged, "layers.1.norm.weight"), 3.0);
    // In mergekit the only layer is the last.
    folder.model("other", &super::layers(1, 5.0));
    let merged = folder
        .merge("merge_method: linear\nparameters: {normalize: false}\nmodels: [{model: <small>, parameters: {weight: [0, 1]}}, {model: <other>, parameters: {weight: 1}}]")
        .expect("merges");
    assert_eq!(first(&merged, "layers.0.norm.weight"), 8.0);
    assert_eq!(first(&merged, "embed.weight"), 5.0);
}

#[test]
fn slices_that_cannot_be_cut_are_named_with_their_line() {
    let folder = Folder::three();
    let said = folder.fault(
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: <a>, layer_range: [0, 3]}",
    );
    assert!(
        said.contains("`layer_range: [0, 3]` ends beyond the 2 layers of "),
        "{said}"
    );
    assert!(said.contains("(line 4, column"), "{said}");
    for (range, part) in [
        ("[2, 1]", "begins after its end"),
        ("[1, 1]", "has no layer"),
    ] {
        let said = folder.fault(&format!(
            "merge_method: passthrough\nslices:\n- sources:\n  - {{model: <a>, layer_range: {range}}}"
        ));
        assert!(said.contains(part), "{said}");
    }
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <a>\nparameters: {t: 1}\nslices:\n- sources:\n  - {model: <a>, \
         layer_range: [0, 2]}\n  - {model: <b>, layer_range: [0, 1]}",
    );
    assert!(said.contains("2 and 1 layers (line 7, column"), "{said}");
    folder.model(
        "two",
        &[
            ("x.0.a.w", &[1], 0.0),
            ("x.1.a.w", &[1], 0.0),
            ("y.0.a.w", &[1], 0.0),
            ("y.1.a.w", &[1], 0.0),
        ],
    );
    let yaml =
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: <two>, layer_range: [0, 1]}";
    let said = folder.fault(yaml);
    assert!(said.contains("x (2), y (2)"), "{said}");
    let merged = folder.merge(&format!("layers: x\n{yaml}")).expect("merges");
    assert_eq!(
        merged.into_keys().collect::<Vec<_>>(),
        ["x.0.a.w", "y.0.a.w", "y.1.a.w"]
    );
}

#[test]
fn a_base_that_a_slice_does_not_name_gives_the_layers_of_its_sources_or_none() {
    let folder = Folder::three();
    let yaml = |layers: [&str; 2], named: &str| {
        format!(
            "merge_method: task_arithmetic\nparameters: {{weight: 1}}\nbase_model: <base>\nslices:\n- sources:\n  - \
             {{model: <a>, layer_range: {}}}\n  - {{model: <b>, layer_range: {}}}\n{named}",
            layers[0], layers[1]
        )
    };
    let merged = folder
        .merge(&yaml(["[0, 1]", "[0, 1]"], ""))
        .expect("merges");
    // 1 + (2 - 1) + (4 - 1).
    assert_eq!(first(&merged, "layers.0.norm.weight"), 5.0);
    let said = folder.fault(&yaml(["[0, 1]", "[1, 2]"], ""));
    assert!(
        said.contains("take the layers from 0 and from 1") && said.contains("(line 7, column"),
        "{said}"
    );
    let named = "  - {model: <base>, layer_range: [1, 2]}";
    let merged = folder.merge(&yaml(["[0, 1]", "[1, 2]"], named));
    assert_eq!(first(&merged.expect("merges"), "layers.0.norm.weight"), 5.0);
}

#[test]
fn a_base_that_is_too_short_for_a_slice_is_named_with_its_own_layer() {
    let folder = Folder::three();
    folder.model("short", &super::layers(1, 1.0));
    let said = folder.fault(
        "merge_method: task_arithmetic\nparameters: {weight: 1}\nbase_model: <short>\nslices:\n- sources: [{model: <a>, \
         layer_range: [0, 1]}]\n- sources: [{model: <a>, layer_range: [0, 2]}]",
    );
    assert!(
        said.contains("short.safetensors has no layer 1: it has 1 layers"),
        "{said}"
    );
}

#[test]
fn a_slice_that_names_its_base_twice_is_refused() {
    let folder = Folder::three();
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <a>\nparameters: {t: 0.5}\nslices:\n- sources:\n  - {model: <a>, layer_range: \
         [0, 1]}\n  - {model: <a>, layer_range: [1, 2]}",
    );
    assert!(
        said.contains("names the base") && said.contains("twice") && said.contains("(line 7,"),
        "{said}"
    );
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <base>\nparameters: {t: 0.5}\nslices:\n- sources:\n  - {model: <a>, layer_range: \
         [0, 1]}\n  - {model: <b>, layer_range: [0, 1]}",
    );
    assert!(
        said.contains("the slice has 2 models and a base_model that is none of them"),
        "{said}"
    );
}

#[test]
fn the_base_of_a_slice_is_averaged_by_a_method_that_measures_from_none() {
    let folder = Folder::three();
    let merged = folder.merge(
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n- base_model: <a>\n  sources: [{model: <a>, layer_range: [0, \
         2]}, {model: <b>, layer_range: [0, 2]}]",
    );
    assert_eq!(first(&merged.expect("merges"), "layers.0.norm.weight"), 3.0);
}
