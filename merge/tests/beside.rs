//! Model folders: what travels along with merged weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, check, execute};
use merge::io::WriteOptions;
use merge::progress::Silent;
use merge::{Error, MergePlan, MergeRecipe};
use serde_json::{Value, json};

use fixtures as fixture;

/// A recipe over the fixtures' model folders, named `<name>`.
fn recipe(yaml: &str) -> MergeRecipe {
    let folder = fixture::path("mergekit");
    let yaml = yaml
        .replace('<', &format!("{}/", folder.display()))
        .replace('>', "");
    MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("a recipe")
}

fn merge_to(recipe: &MergeRecipe, folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let (plan, _) = MergePlan::resolve(recipe)?;
    let write = WriteOptions {
        sync: false,
        ..WriteOptions::in_folder(folder, None)
    };
    check(&plan, &write, &RunOptions::default())?;
    Ok(execute(&plan, &write, &RunOptions::default(), &Silent)?.files)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("readable");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_folder_gets_configuration_tokenizer_and_card_and_a_file_gets_nothing() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(
        "merge_method: linear\ndtype: bfloat16\nparameters: {weight: 1}\nmodels: [<words_a>]",
    );
    let folder = target.path().join("merged");
    let files = merge_to(&recipe, &folder).expect("merges");
    let expected = [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&folder), expected);
    assert_eq!(files.len(), expected.len());
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).expect("readable");
    let origin = fixture::path("mergekit/words_a");
    assert_eq!(
        read(&folder, "tokenizer.json"),
        read(&origin, "tokenizer.json")
    );
    let config = json_of(&folder.join("config.json"));
    assert_eq!(config["torch_dtype"], "bfloat16");
    assert_eq!(config["vocab_size"], 7);
    let card = String::from_utf8(read(&folder, "README.md")).expect("UTF-8");
    let hash = blake3::hash(&read(&origin, "model.safetensors")).to_hex();
    for part in [
        "---\nlibrary_name: transformers\n",
        "# merged\n",
        "`linear`",
        hash.as_str(),
        "- model: words_a\n",
    ] {
        assert!(card.contains(part), "no {part} in\n{card}");
    }
    let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
    let alone = target.path().join("alone.safetensors");
    let summary = execute(
        &plan,
        &WriteOptions::new(&alone),
        &RunOptions::default(),
        &Silent,
    );
    assert_eq!(summary.expect("merges").files, [alone]);
    assert_eq!(names(target.path()), ["alone.safetensors", "merged"]);
}

#[test]
fn nothing_in_a_folder_is_replaced_unless_asked_and_no_empty_folder_stays() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe("merge_method: passthrough\nmodels: [<a>]");
    let folder = target.path().join("merged");
    std::fs::create_dir(&folder).expect("made");
    std::fs::write(folder.join("config.json"), "mine").expect("written");
    let said = merge_to(&recipe, &folder)
        .expect_err("in the way")
        .to_string();
    assert!(said.contains("config.json: already exists"), "{said}");
    assert_eq!(names(&folder), ["config.json"]);
    let nowhere = target.path().join("no/merged");
    let said = merge_to(&recipe, &nowhere)
        .expect_err("no parent")
        .to_string();
    assert!(said.contains("/no: the folder does not exist"), "{said}");
    // A merge that fails removes the folder that it made.
    let infinite = fixture::Raw {
        dtype: safetensors::Dtype::F32,
        shape: vec![1],
        bytes: f32::INFINITY.to_le_bytes().to_vec(),
    };
    let model = target.path().join("infinite.safetensors");
    fixture::write(&model, &BTreeMap::from([("x".to_owned(), infinite)]));
    let yaml = format!("merge_method: passthrough\nmodels: [{}]", model.display());
    let recipe = MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("a recipe");
    let failed = target.path().join("failed");
    assert!(merge_to(&recipe, &failed).is_err());
    assert!(!failed.exists());
}

#[test]
fn slices_change_the_number_of_layers_in_the_configuration() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(
        "merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 6]}]\n- sources: \
         [{model: <c>, layer_range: [3, 11]}]",
    );
    merge_to(&recipe, target.path()).expect("merges");
    assert_eq!(
        json_of(&target.path().join("config.json"))["num_hidden_layers"],
        14
    );
}

#[test]
fn the_tokens_of_a_union_are_those_that_its_rows_stand_for() {
    for name in [
        "tokens_union",
        "tokens_union_of_base",
        "tokens_base_of_base",
    ] {
        let text = std::fs::read_to_string(fixture::path(&format!("mergekit/{name}.yaml")));
        let yaml = text.expect("a fixture").replace("words_", "<words_");
        let target = tempfile::tempdir().expect("a temporary folder");
        merge_to(&recipe(&yaml), target.path()).expect("merges");
        let tokenizer = json_of(&target.path().join("tokenizer.json"));
        let mut tokens = tokenizer["model"]["vocab"].clone();
        for added in tokenizer["added_tokens"].as_array().expect("a list") {
            tokens[added["content"].as_str().expect("a text")] = added["id"].clone();
        }
        let expected = fixture::json(&format!("mergekit/{name}.tokens.json"));
        assert_eq!(tokens, expected, "{name}");
        let n_tokens = expected.as_object().expect("an object").len();
        let config = json_of(&target.path().join("config.json"));
        assert_eq!(config["vocab_size"], json!(n_tokens), "{name}");
    }
}

#[test]
fn the_tokens_may_be_those_of_any_model() {
    let plan = |source: &str| {
        let yaml = format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [<words_a>, <words_b>]\ntokenizer_source: {source}"
        );
        MergePlan::resolve(&recipe(&yaml))
    };
    let rows = |source: &str| {
        let (plan, _) = plan(source).expect("resolves");
        let head = plan
            .entries()
            .iter()
            .find(|entry| entry.name == "lm_head.weight");
        head.expect("there").info.shape[0]
    };
    assert_eq!(rows("<words_base>"), 6);
    assert_eq!(rows("base"), 7);
    let said = plan("<a>").map(drop).expect_err("no tokens").to_string();
    assert!(
        said.contains("mergekit/a: no tokenizer.json beside it"),
        "{said}"
    );
}

#[test]
fn new_tokens_are_added_and_rows_that_fill_up_are_the_mean_of_all() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(
        "merge_method: passthrough\nmodels: [<words_a>]\ntokenizer:\n  source: base\n  pad_to_multiple_of: 12\n  tokens:\n    \
         new: {source: {kind: zero}}\n    again: {source: {kind: model_token, model: <words_a>, token_id: 2}}",
    );
    merge_to(&recipe, target.path()).expect("merges");
    assert_eq!(
        json_of(&target.path().join("config.json"))["vocab_size"],
        12
    );
    let added = &json_of(&target.path().join("tokenizer.json"))["added_tokens"];
    let content: Vec<&str> = (added.as_array().expect("a list").iter())
        .filter_map(|entry| entry["content"].as_str())
        .collect();
    assert_eq!(content, ["<unk>", "<a>", "again", "new"]);
    let name = "model.embed_tokens.weight";
    let rows = |path: PathBuf| -> Vec<Vec<f64>> {
        let tensor = &fixture::tensors(&path)[name];
        let rows = tensor.values();
        rows.chunks(tensor.shape[1]).map(<[f64]>::to_vec).collect()
    };
    let before = rows(fixture::path("mergekit/words_a/model.safetensors"));
    let after = rows(target.path().join("model.safetensors"));
    assert_eq!((before.len(), after.len()), (7, 12));
    assert_eq!(after[..7], before);
    assert_eq!(
        (&after[7], &after[8]),
        (&before[2], &vec![0.0; before[0].len()])
    );
    for (column, found) in after[11].iter().enumerate() {
        let sum: f64 = after[..9].iter().map(|row| row[column]).sum();
        assert!((found - sum / 9.0).abs() < 1e-7);
    }
    // A token that no model has needs a row.
    let recipe = self::recipe(
        "merge_method: passthrough\nmodels: [<words_a>]\ntokenizer: {source: base, tokens: {new: {force: true}}}",
    );
    let said = MergePlan::resolve(&recipe).map(drop).expect_err("refused");
    assert!(said.to_string().contains("needs a `source`"), "{said}");
}

#[test]
fn vocabularies_that_differ_are_refused_with_the_line_and_the_two_ways_out() {
    let resolve = |yaml: &str| MergePlan::resolve(&recipe(yaml)).map(drop);
    let yaml =
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- <words_base>\n- <words_a>";
    let fault = resolve(yaml).expect_err("refused");
    let said = fault.to_string();
    for part in [
        "words_base and ",
        "words_a differ: `<a>` is missing in the one and has the id 6 in the other (8 tokens differ)",
        "(line 5, column 3)",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let hint = fault.hint().expect("a hint");
    assert!(hint.contains("tokenizer_source: base") && hint.contains("tokenizer_source: union"));
    // A model without a tokenizer says nothing of its tokens.
    let fault =
        resolve("merge_method: linear\nparameters: {weight: 1}\nmodels: [<words_base>, <a>]");
    assert!(
        !fault
            .expect_err("other shapes")
            .to_string()
            .contains("vocabularies")
    );
}

#[test]
fn a_document_hands_its_files_on_to_the_next() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let recipe = recipe(
        "name: both\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [<words_a>, <words_b>]\n\
         tokenizer_source: union\n---\nmerge_method: passthrough\nmodels: [both]",
    );
    merge_to(&recipe, target.path()).expect("merges");
    let config = json_of(&target.path().join("config.json"));
    assert_eq!(config["vocab_size"], 9);
    let card = std::fs::read_to_string(target.path().join("README.md")).expect("readable");
    assert!(
        card.contains("words_a | merged") && card.contains("words_b | merged"),
        "{card}"
    );
}

/// A folder with a model of `n_layers` layers, and `settings` as its configuration unless they are null.
fn model(folder: &Path, n_layers: usize, value: f32, settings: &Value) {
    std::fs::create_dir(folder).expect("made");
    let tensor = |n: usize| fixture::Raw {
        dtype: safetensors::Dtype::F32,
        shape: vec![n],
        bytes: value.to_le_bytes().repeat(n),
    };
    let mut tensors = BTreeMap::from([("model.embed_tokens.weight".to_owned(), tensor(4))]);
    for layer in 0..n_layers {
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        tensors.insert(name, tensor(2));
    }
    fixture::write(&folder.join("model.safetensors"), &tensors);
    if !settings.is_null() {
        std::fs::write(folder.join("config.json"), settings.to_string()).expect("written");
    }
}

/// A recipe over folders of `at`, named `<name>`.
fn recipe_at(at: &Path, yaml: &str) -> MergeRecipe {
    let yaml = yaml
        .replace('<', &format!("{}/", at.display()))
        .replace('>', "");
    MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("a recipe")
}

#[test]
fn models_of_different_depth_get_a_configuration_with_the_layers_that_stay() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let config = |n: usize| {
        json!({"model_type": "llama", "num_hidden_layers": n, "num_attention_heads": 2,
            "layer_types": (0..n).map(|layer| format!("type_{layer}")).collect::<Vec<_>>()})
    };
    model(&at.path().join("deep"), 4, 1.0, &config(4));
    model(&at.path().join("flat"), 3, 3.0, &config(3));
    for (models, on_missing, n_layers) in [
        ("<deep>, <flat>", "skip", 3),
        ("<deep>, <flat>", "copy", 4),
        ("<flat>, <deep>", "skip", 3),
        ("<flat>, <deep>", "copy", 4),
    ] {
        let yaml = format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\non_missing: {on_missing}"
        );
        let out = at.path().join(format!("{n_layers}_{on_missing}"));
        let _ = std::fs::remove_dir_all(&out);
        merge_to(&recipe_at(at.path(), &yaml), &out).expect("merges");
        let found = json_of(&out.join("config.json"));
        assert_eq!(found["num_hidden_layers"], n_layers, "{yaml}");
        assert_eq!(
            found["layer_types"],
            config(n_layers)["layer_types"],
            "{yaml}"
        );
    }
}

#[test]
fn a_hole_between_the_layers_is_refused() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let config = json!({"model_type": "llama", "num_hidden_layers": 3});
    model(&at.path().join("a"), 3, 1.0, &config);
    model(&at.path().join("b"), 3, 3.0, &config);
    let path = at.path().join("b/model.safetensors");
    let mut tensors = fixture::tensors(&path);
    tensors.remove("model.layers.1.mlp.down_proj.weight");
    fixture::write(&path, &tensors);
    let yaml =
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <b>]\non_missing: skip";
    let said = MergePlan::resolve(&recipe_at(at.path(), yaml)).map(drop);
    let said = said.expect_err("refused").to_string();
    assert!(said.contains("no tensor of the layers [1]"), "{said}");
}

#[test]
fn settings_that_change_the_computation_are_noted_and_other_heads_refused() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let config = json!({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "rope_theta": 10000.0});
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    model(&at.path().join("a"), 2, 1.0, &config);
    model(
        &at.path().join("same"),
        2,
        2.0,
        &with("rope_theta", json!(10000)),
    );
    model(
        &at.path().join("theta"),
        2,
        2.0,
        &with("rope_theta", json!(1_000_000)),
    );
    model(
        &at.path().join("heads"),
        2,
        2.0,
        &with("num_attention_heads", json!(3)),
    );
    model(&at.path().join("bare"), 2, 2.0, &Value::Null);
    let plan = |models: &str| {
        let yaml =
            format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n- <a>\n- {models}");
        MergePlan::resolve(&recipe_at(at.path(), &yaml)).map(|(plan, _)| plan)
    };
    let notes = |models: &str| plan(models).expect("resolves").beside().notes.clone();
    assert!(notes("<same>").is_empty(), "{:?}", notes("<same>"));
    assert!(notes("<bare>").is_empty(), "{:?}", notes("<bare>"));
    let said = notes("<theta>");
    assert!(
        said.len() == 1
            && said[0]
                .contains("differ: `rope_theta` 10000.0 and 1000000; the output gets that of"),
        "{said:?}"
    );
    let fault = plan("<heads>").map(drop).expect_err("refused");
    let said = fault.to_string();
    for part in [
        "heads has `num_attention_heads: 3`",
        "`num_attention_heads: 2` (line 5, column 3)",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(fault.hint().is_some());
    // The first model has no configuration, the second one.
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [<bare>, <a>]";
    let (plan, _) = MergePlan::resolve(&recipe_at(at.path(), yaml)).expect("resolves");
    let said = &plan.beside().notes;
    assert!(
        said.iter()
            .any(|note| note.contains("bare has no config.json, so a folder as output gets none")),
        "{said:?}"
    );
}
