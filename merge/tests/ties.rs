//! Heads that share their weights with the embeddings: the result is what PEFT computes with an adapter on, and
//! config.json says what the file is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::lora::{ExtractOptions, ExtractTarget, extract};
use merge::low_rank::Truncation;
use merge::{DType, Error, MergePlan, MergeRecipe};
use safetensors::Dtype;
use serde_json::Value;

use fixtures::{self as fixture, Raw};

const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: &str = "model.embed_tokens.weight";

fn path(name: &str) -> PathBuf {
    fixture::path("ties").join(name)
}

fn tensors(name: &str) -> BTreeMap<String, Raw> {
    let folder = path(name);
    let file = ["model.safetensors", "adapter_model.safetensors"];
    let file = file.map(|file| folder.join(file)).into_iter();
    fixture::tensors(
        &file
            .into_iter()
            .find(|file| file.is_file())
            .expect("is there"),
    )
}

/// The tensors and the configuration of a merge; `<name>` is a fixture.
fn merged(yaml: &str) -> Result<(BTreeMap<String, Raw>, Value), Error> {
    let yaml = yaml
        .replace('<', &format!("{}/", path("").display()))
        .replace('>', "");
    let recipe = MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))?;
    let (plan, _) = MergePlan::resolve(&recipe)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("out");
    let write = WriteOptions {
        sync: false,
        ..WriteOptions::in_folder(&target, None)
    };
    execute(
        &plan,
        &write,
        &RunOptions::default(),
        &merge::progress::Silent,
    )?;
    let config = std::fs::read_to_string(target.join("config.json")).expect("written");
    let config = serde_json::from_str(&config).expect("JSON");
    Ok((fixture::tensors(&target.join("model.safetensors")), config))
}

fn with(adapters: &str) -> (BTreeMap<String, Raw>, Value) {
    let yaml = format!("merge_method: passthrough\nmodels: ['{adapters}']\n");
    merged(&yaml).expect("merges")
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(fixture::first_difference(found, expected, 0.0, 1e-6), None);
}

/// `W + s B A`, with `A` of `(rank, in)` and `B` of `(out, rank)`.
fn plus_product(weight: &[f64], a: &Raw, b: &Raw, scale: f64) -> Vec<f64> {
    let (rank, width) = (a.shape[0], a.shape[1]);
    let (a, b) = (a.values(), b.values());
    let product = |row: usize, column: usize| -> f64 {
        (0..rank)
            .map(|r| b[row * rank + r] * a[r * width + column])
            .sum()
    };
    (weight.iter().enumerate())
        .map(|(at, value)| value + scale * product(at / width, at % width))
        .collect()
}

fn scale(adapter: &str) -> f64 {
    let text =
        std::fs::read_to_string(path(adapter).join("adapter_config.json")).expect("settings");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    config["lora_alpha"].as_f64().expect("alpha") / config["r"].as_f64().expect("rank")
}

#[test]
fn embeddings_stand_for_the_head_that_a_tied_model_lacks() {
    let (found, config) = merged(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [<tied>, <tied_with_head>]\n",
    )
    .expect("merges");
    let (tied, apart) = (tensors("tied"), tensors("tied_with_head"));
    let mean = |a: &Raw, b: &Raw| -> Vec<f64> {
        (a.values().iter().zip(b.values()))
            .map(|(a, b)| (a + b) / 2.0)
            .collect()
    };
    close(
        &found[HEAD].values(),
        &mean(&tied[EMBEDDINGS], &apart[HEAD]),
    );
    close(
        &found[EMBEDDINGS].values(),
        &mean(&tied[EMBEDDINGS], &apart[EMBEDDINGS]),
    );
    assert_eq!(config["tie_word_embeddings"], false);
    // Two tied models stay tied.
    let (found, config) =
        merged("merge_method: linear\nparameters: {weight: 1}\nmodels: [<tied>, <tied>]\n")
            .expect("merges");
    assert!(!found.contains_key(HEAD));
    assert_eq!(config["tie_word_embeddings"], true);
}

#[test]
fn an_adapter_on_the_embeddings_alone_leaves_the_head_as_it_was() {
    let base = tensors("base");
    for adapter in ["saved_embeddings", "lora_on_embeddings"] {
        let (found, config) = with(&format!("<base>+{}", path(adapter).display()));
        close(&found[HEAD].values(), &base[EMBEDDINGS].values());
        assert_ne!(
            found[EMBEDDINGS].values(),
            base[EMBEDDINGS].values(),
            "{adapter}"
        );
        assert_eq!(config["tie_word_embeddings"], false, "{adapter}");
    }
}

#[test]
fn an_adapter_on_a_tied_head_adds_to_the_embeddings_under_the_heads_name() {
    let adapter = tensors("lora_on_head");
    let (a, b) = (
        &adapter["base_model.model.lm_head.lora_A.weight"],
        &adapter["base_model.model.lm_head.lora_B.weight"],
    );
    let (found, config) = with(&format!("<base>+{}", path("lora_on_head").display()));
    let base = tensors("base");
    let expected = plus_product(&base[EMBEDDINGS].values(), a, b, scale("lora_on_head"));
    close(&found[HEAD].values(), &expected);
    assert_eq!(found[EMBEDDINGS], base[EMBEDDINGS]);
    assert_eq!(config["tie_word_embeddings"], false);
    // The same with a head that is stored, though the configuration says that it is tied.
    let (_, config) = with(&format!(
        "<base_with_head>+{}",
        path("lora_on_head").display()
    ));
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn an_adapter_that_changes_both_alike_leaves_them_tied() {
    let adapter = tensors("tied_by_peft");
    let (found, config) = with(&format!("<base>+{}", path("tied_by_peft").display()));
    assert!(!found.contains_key(HEAD));
    let whole = &adapter["base_model.model.model.embed_tokens.weight"];
    close(&found[EMBEDDINGS].values(), &whole.values());
    assert_eq!(config["tie_word_embeddings"], true);
}

#[test]
fn an_adapter_with_more_tokens_brings_its_rows() {
    let adapter = tensors("grown_adapter");
    let (found, config) = with(&format!("<grown_base>+{}", path("grown_adapter").display()));
    for (name, key) in [
        (EMBEDDINGS, "base_model.model.model.embed_tokens.weight"),
        (HEAD, "base_model.model.lm_head.weight"),
    ] {
        assert_eq!(found[name].shape, [18, 8]);
        close(&found[name].values(), &adapter[key].values());
    }
    assert_eq!(config["vocab_size"], 18);
}

#[test]
fn an_adapter_of_tied_models_holds_the_change_of_the_head_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("adapter");
    let checkpoint = |name: &str| open(&path(name), &OpenOptions::default()).expect("opens");
    let options = ExtractOptions {
        truncation: Truncation::Rank(8),
        dtype: DType::F32,
        include: Vec::new(),
        exclude: Vec::new(),
        embeddings: true,
        save_whole: true,
        fan_in_fan_out: false,
        seed: 0,
    };
    let target_of = |folder: &Path| ExtractTarget {
        folder: folder.to_owned(),
        force: false,
        command: "test".into(),
        base: path("extracted_base"),
    };
    let base = checkpoint("extracted_base");
    let tuned = std::sync::Arc::new(checkpoint("extracted_tuned"));
    let silent = &merge::progress::Silent;
    let found = extract(&base, &tuned, &options, &target_of(&target), silent).expect("extracts");
    assert!(found.tensors.iter().any(|tensor| tensor.name == HEAD));
    let adapter = fixture::tensors(&target.join("adapter_model.safetensors"));
    let of_head = &adapter["base_model.model.lm_head.lora_B.weight"];
    assert_eq!(
        of_head.shape[0],
        tensors("extracted_tuned")[EMBEDDINGS].shape[0]
    );
    let settings = std::fs::read_to_string(target.join("adapter_config.json")).expect("written");
    assert!(
        settings.contains("\"lm_head\"") && settings.contains("\"embed_tokens\""),
        "{settings}"
    );
    let (merged, _) = with(&format!("<extracted_base>+{}", target.display()));
    let tuned_embeddings = tensors("extracted_tuned")[EMBEDDINGS].values();
    close(&merged[EMBEDDINGS].values(), &tuned_embeddings);
    close(&merged[HEAD].values(), &tuned_embeddings);
    // Whole, too.
    let whole = folder.path().join("whole");
    let options = ExtractOptions {
        embeddings: false,
        ..options
    };
    extract(&base, &tuned, &options, &target_of(&whole), silent).expect("extracts");
    let settings = std::fs::read_to_string(whole.join("adapter_config.json")).expect("written");
    let settings: Value = serde_json::from_str(&settings).expect("JSON");
    let modules = settings["modules_to_save"].as_array().expect("a list");
    assert!(modules.contains(&"lm_head".into()) && modules.contains(&"model.embed_tokens".into()));
    let (merged, config) = with(&format!("<extracted_base>+{}", whole.display()));
    assert!(!merged.contains_key(HEAD));
    assert_eq!(config["tie_word_embeddings"], true);
}

/// A folder with a model of embeddings of a number of rows, all of one value, and four tokens.
fn padded(folder: &Path, name: &str, n_rows: usize, value: f32) -> PathBuf {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).expect("made");
    let rows: Vec<f32> = (0..n_rows).flat_map(|row| [value, row as f32]).collect();
    let raw = Raw {
        dtype: Dtype::F32,
        shape: vec![n_rows, 2],
        bytes: bytemuck::cast_slice(&rows).to_vec(),
    };
    let model = BTreeMap::from([(EMBEDDINGS.to_owned(), raw)]);
    fixture::write(&folder.join("model.safetensors"), &model);
    let tokenizer = r#"{"model": {"vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}}"#;
    std::fs::write(folder.join("tokenizer.json"), tokenizer).expect("written");
    let config = format!(r#"{{"vocab_size": {n_rows}}}"#);
    std::fs::write(folder.join("config.json"), config).expect("written");
    folder
}

#[test]
fn models_that_are_filled_up_differently_are_merged_over_their_tokens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (short, long) = (
        padded(folder.path(), "short", 5, 1.0),
        padded(folder.path(), "long", 8, 3.0),
    );
    let merge = |first: &Path, second: &Path, more: &str| {
        let yaml = format!(
            "merge_method: linear\nparameters: {{weight: 1}}\n{more}models: ['{}', '{}']\n",
            first.display(),
            second.display()
        );
        let (found, config) = merged(&yaml).expect("merges");
        let values: Vec<f64> = found[EMBEDDINGS].values().into_iter().step_by(2).collect();
        (values, config["vocab_size"].clone())
    };
    let (values, size) = merge(&short, &long, "");
    assert_eq!((values, size), (vec![2.0; 5], 5.into()));
    let (values, size) = merge(&long, &short, "");
    assert_eq!(
        (values, size),
        (vec![2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0], 8.into())
    );
    // Rows that fill up stay with a common vocabulary, too.
    let (values, size) = merge(&long, &short, "tokenizer_source: base\n");
    assert_eq!((values.len(), size), (8, 8.into()));
    assert_eq!(values[..4], [2.0; 4]);
    // Fewer rows than tokens: the most of any.
    let tiny = padded(folder.path(), "tiny", 3, 5.0);
    let (values, size) = merge(&tiny, &long, "");
    assert_eq!((values.len(), size), (8, 8.into()));
}
