//! Modules: the parts of a model, each merged from its own models.

use serde_json::{Value, json};

use super::{Folder, first};

/// A vision-language model as files of Gemma 3 have it, all tensors filled with one value.
const NAMES: [&str; 9] = [
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.mlp.up_proj.weight",
    "language_model.model.layers.1.mlp.up_proj.weight",
    "language_model.model.norm.weight",
    "multi_modal_projector.mm_input_projection_weight",
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
    "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
    "vision_tower.vision_model.post_layernorm.weight",
];
const TEXT: &str = "language_model.model.layers";
const VISION: &str = "vision_tower.vision_model.encoder.layers";

fn models() -> Folder {
    let folder = Folder::new();
    for (name, value) in [("base", 1.0), ("a", 2.0), ("b", 4.0)] {
        let tensors = NAMES.map(|key| (key, &[2_usize][..], value));
        folder.model(name, &tensors);
    }
    folder
}

#[test]
fn each_module_is_merged_from_its_own_models_with_its_own_parameters() {
    let folder = models();
    let merged = folder.merge(
        "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  text_decoder:\n    slices:\n    - sources: [{model: \
         <a>, layer_range: [0, 2]}, {model: <b>, layer_range: [0, 2], parameters: {weight: 0}}]\n    - sources: [{model: \
         <a>, layer_range: [1, 2]}, {model: <b>, layer_range: [0, 1]}]\n      parameters: {weight: 5}\n    parameters: \
         {weight: 3}\n  vision_tower:\n    models: [<a>, {model: <b>, parameters: {weight: 3}}]\n    parameters: {weight: \
         1}\n  multi_modal_projector: {models: [<b>]}",
    );
    let merged = merged.expect("merges");
    assert_eq!(merged.len(), NAMES.len() + 1);
    let layer = |stack: &str, layer: usize, rest: &str| {
        first(&merged, &format!("{stack}.{layer}.{rest}.weight"))
    };
    // Of a alone, then halfway: slice before module before recipe.
    assert_eq!(layer(TEXT, 1, "mlp.up_proj"), 2.0);
    assert_eq!(layer(TEXT, 2, "mlp.up_proj"), 3.0);
    assert_eq!(
        first(&merged, "language_model.model.embed_tokens.weight"),
        2.0
    );
    assert_eq!(first(&merged, "language_model.model.norm.weight"), 3.0);
    assert_eq!(layer(VISION, 2, "mlp.fc1"), (2.0 + 3.0 * 4.0) / 4.0);
    assert_eq!(first(&merged, NAMES[4]), 4.0);
}

#[test]
fn differences_are_measured_from_the_base_in_each_module() {
    let folder = models();
    let merged = folder.merge(
        "merge_method: task_arithmetic\nbase_model: <base>\nparameters: {weight: 1}\nmodules:\n  text_decoder: {models: \
         [<a>]}\n  vision_tower:\n    slices: [{sources: [{model: <b>, layer_range: [1, 3]}]}]\n  multi_modal_projector: \
         {slices: [{sources: [{model: <a>, layer_range: [0, 0]}, {model: <b>, layer_range: [0, 0]}]}]}",
    );
    let merged = merged.expect("merges");
    assert_eq!(first(&merged, &format!("{TEXT}.0.mlp.up_proj.weight")), 2.0);
    assert_eq!(first(&merged, &format!("{VISION}.1.mlp.fc1.weight")), 4.0);
    assert!(!merged.contains_key(&format!("{VISION}.2.mlp.fc1.weight")));
    // 1 + (2 - 1) + (4 - 1): a module without layers, whose range says nothing.
    assert_eq!(first(&merged, NAMES[4]), 5.0);
}

#[test]
fn a_module_that_the_recipe_does_not_name_is_an_error_or_copied_or_left_out() {
    let folder = models();
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  text_decoder: {models: [<b>, <a>]}\n";
    let error = folder.plan(yaml).map(drop).expect_err("refused");
    let said = error.to_string();
    for part in [
        "multi_modal_projector (1 tensor), vision_tower (4 tensors)",
        "b.safetensors has",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("vision_tower: { models: [MODEL] }"))
    );
    let copied = folder
        .merge(&format!("{yaml}on_missing: copy"))
        .expect("merges");
    assert_eq!(copied.len(), NAMES.len());
    assert_eq!(first(&copied, NAMES[5]), 4.0);
    assert_eq!(first(&copied, NAMES[1]), 3.0);
    let skipped = folder
        .merge(&format!("{yaml}on_missing: skip"))
        .expect("merges");
    assert_eq!(skipped.len(), 4);
    let plan = folder
        .plan(&format!("{yaml}on_missing: skip"))
        .expect("resolves");
    assert!(plan.entries()[0].why.starts_with("text_decoder: 0.5"));
    assert_eq!(plan.dropped().len(), 10);
    assert_eq!(plan.dropped()[0].why, "in no module of the recipe");
}

#[test]
fn recipes_whose_modules_cannot_be_are_told_what_modules_there_are() {
    let folder = models();
    let fault = |yaml: &str| {
        folder.fault(&format!(
            "merge_method: linear\nparameters: {{weight: 1}}\n{yaml}"
        ))
    };
    let said = fault("modules: {vision: {models: [<a>]}}");
    // Without a configuration a model of other modules has one for each stack.
    for part in [
        "no module `vision`",
        "default (4 tensors)",
        &format!("{TEXT} (2 tensors)"),
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let said = fault(&format!(
        "modules: {{{TEXT}: {{models: [<a>]}}, language_model.layers: {{models: [<a>]}}}}"
    ));
    assert!(said.contains("twice"), "{said}");
    let said = fault("modules: {text_decoder: {parameters: {weight: 1}}}");
    assert!(
        said.contains("the module `text_decoder` has either"),
        "{said}"
    );
    let said = fault("models: [<a>]\nmodules: {text_decoder: {models: [<a>]}}");
    assert!(
        said.contains("one of `models`, `slices` and `modules`"),
        "{said}"
    );
    let said = fault("layers: x\nmodules: {text_decoder: {models: [<a>]}}");
    assert!(said.contains("`layers` stands in the module"), "{said}");
}

#[test]
fn a_module_may_come_from_a_model_that_is_only_this_module() {
    let folder = models();
    folder.model(
        "language",
        &[
            ("model.embed_tokens.weight", &[2], 8.0),
            ("model.layers.0.mlp.up_proj.weight", &[2], 8.0),
            ("model.layers.1.mlp.up_proj.weight", &[2], 8.0),
            ("model.norm.weight", &[2], 8.0),
        ],
    );
    let merged = folder.merge(
        "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  text_decoder:\n    models: [<a>, {model: <language>, \
         rename: [{from: '^model', to: language_model.model}]}]\n  vision_tower: {models: [<a>]}\n  multi_modal_projector: \
         {models: [<a>]}",
    );
    let merged = merged.expect("merges");
    assert_eq!(first(&merged, NAMES[1]), 5.0);
    assert_eq!(first(&merged, NAMES[5]), 2.0);
}

#[test]
fn the_configuration_counts_the_layers_of_each_module() {
    let folder = models();
    let model = folder.0.path().join("model");
    std::fs::create_dir(&model).expect("made");
    std::fs::copy(folder.path("a"), model.join("model.safetensors")).expect("copied");
    let config = json!({"architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"num_hidden_layers": 2, "layer_types": ["full", "sliding"]},
        "vision_config": {"num_hidden_layers": 3}});
    std::fs::write(model.join("config.json"), config.to_string()).expect("written");
    let yaml = "merge_method: passthrough\nmodules:\n  text_decoder:\n    slices:\n    - sources: [{model: M, layer_range: \
                [0, 2]}]\n    - sources: [{model: M, layer_range: [1, 2]}]\n  vision_tower: {slices: [{sources: [{model: M, \
                layer_range: [0, 2]}]}]}\n  multi_modal_projector: {models: [M]}";
    let recipe = folder.recipe(&yaml.replace('M', &model.display().to_string()));
    let (plan, _) = merge::MergePlan::resolve(&recipe.expect("valid")).expect("resolves");
    let config = plan
        .beside()
        .files
        .iter()
        .find(|file| file.name == "config.json");
    let merge::beside::Content::Text(text) = &config.expect("there").content else {
        panic!("not changed");
    };
    let config: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(
        config["text_config"],
        json!({"num_hidden_layers": 3, "layer_types": ["full", "sliding", "sliding"]})
    );
    assert_eq!(config["vision_config"]["num_hidden_layers"], 2);
}
