//! Merges of public bug reports, made small: the program writes what loaders need.

mod not_fetched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{Said, vlmerge_in};

/// A case of `fixtures/cases`, and a folder for outputs.
struct Case {
    inputs: PathBuf,
    out: tempfile::TempDir,
}

impl Case {
    fn new(name: &str) -> Self {
        Self {
            inputs: Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fixtures/cases")
                .join(name),
            out: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// A folder for an output.
    fn folder(&self, name: &str) -> String {
        format!("{}/", self.out.path().join(name).display())
    }

    /// A recipe that passes one model through, written beside the outputs.
    fn passthrough(&self, model: &Path) -> String {
        let recipe = self.out.path().join("r.yaml");
        let yaml = format!("merge_method: passthrough\nmodels: [{}]", model.display());
        std::fs::write(&recipe, yaml).expect("written");
        recipe.display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Said {
        vlmerge_in(&self.inputs, arguments)
    }

    fn merge(&self, recipe: &str, out: &str, more: &[&str]) -> Said {
        let folder = self.folder(out);
        let said = self.run(&[&["merge", recipe, "--out", &folder], more].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said
    }

    fn config(&self, out: &str) -> Value {
        let path = self.out.path().join(out).join("config.json");
        let text = std::fs::read_to_string(path).expect("readable");
        serde_json::from_str(&text).expect("JSON")
    }

    fn names(&self, out: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut open = vec![self.out.path().join(out)];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("readable").path();
                match path.is_dir() {
                    true => open.push(path),
                    false => names.push(path),
                }
            }
        }
        let root = self.out.path().join(out);
        let relative = |path: &PathBuf| {
            path.strip_prefix(&root)
                .expect("below")
                .display()
                .to_string()
        };
        let mut names: Vec<String> = names.iter().map(relative).collect();
        names.sort();
        names
    }
}

fn assert_says(said: &Said, words: &str) {
    assert!(said.stderr.contains(words), "{}", said.stderr);
}

fn values(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = merge::io::open(path, &merge::io::OpenOptions::default()).expect("it opens");
    (file.tensors())
        .map(|(name, _)| (name.to_owned(), file.read_all(name).expect("readable")))
        .collect()
}

#[test]
fn slices_of_a_decoder_change_the_decoders_number_of_layers() {
    let case = Case::new("decoder-slices-change-encoder-count");
    case.merge("t5.yaml", "t5", &[]);
    let config = case.config("t5");
    assert_eq!(
        (&config["num_layers"], &config["num_decoder_layers"]),
        (&json!(2), &json!(3))
    );
    case.merge("whisper.yaml", "whisper", &[]);
    let config = case.config("whisper");
    assert_eq!(
        (&config["encoder_layers"], &config["decoder_layers"]),
        (&json!(2), &json!(3))
    );
}

#[test]
fn types_of_layers_follow_the_layers() {
    let case = Case::new("layer-types-not-updated");
    case.merge("qwen3.yaml", "out", &[]);
    let config = case.config("out");
    assert_eq!(config["num_hidden_layers"], 6);
    let (full, sliding) = ("full_attention", "sliding_attention");
    assert_eq!(
        config["layer_types"],
        json!([full, full, sliding, full, sliding, sliding])
    );
}

#[test]
fn a_forced_merge_leaves_nothing_of_the_older_model() {
    let case = Case::new("force-leaves-older-weights");
    let b = values(&case.inputs.join("b/model.safetensors"));
    case.merge("a.yaml", "out", &["--shard-size", "4KB"]);
    let said = case.run(&["merge", "b.yaml", "--out", &case.folder("out")]);
    assert_eq!(
        said.code,
        Some(1),
        "another model is refused: {}",
        said.stderr
    );
    assert!(
        said.stderr.contains("already exists") && said.stderr.contains("--force"),
        "{}",
        said.stderr
    );
    case.merge("b.yaml", "out", &["--force"]);
    let names = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ];
    assert_eq!(case.names("out"), names);
    assert_eq!(values(&case.out.path().join("out/model.safetensors")), b);
    // The other way round, and another container.
    case.merge("a.yaml", "out", &["--force", "--shard-size", "4KB"]);
    assert!(!case.names("out").contains(&"model.safetensors".to_owned()));
    case.merge("b.yaml", "out", &["--force", "--container", "torch"]);
    let names = [
        "README.md",
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
    ];
    assert_eq!(case.names("out"), names);
    // Files that are no model's stay.
    std::fs::write(case.out.path().join("out/notes.md"), "mine").expect("written");
    std::fs::write(case.out.path().join("out/tokenizer.json"), "{}").expect("written");
    case.merge("b.yaml", "out", &["--force"]);
    let names = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.md",
    ];
    assert_eq!(case.names("out"), names);
}

#[test]
fn an_input_in_the_output_folder_is_not_removed() {
    let case = Case::new("force-leaves-older-weights");
    let folder = case.out.path().join("out");
    std::fs::create_dir(&folder).expect("made");
    let input = folder.join("model.fp16.safetensors");
    std::fs::copy(case.inputs.join("a/model.safetensors"), &input).expect("copied");
    let recipe = case.passthrough(&input);
    let said = case.run(&["merge", &recipe, "--out", &case.folder("out"), "--force"]);
    assert_eq!(said.code, Some(1));
    assert_says(&said, "is an input of the merge");
    assert!(input.exists());
}

#[test]
fn of_several_models_in_a_folder_loaders_choice_is_taken_with_a_note() {
    let case = Case::new("variant-files");
    for (folder, taken, passed_over) in [
        (
            "variant",
            "variant/model.safetensors",
            "model.fp16.safetensors",
        ),
        (
            "single-and-index",
            "/model.safetensors",
            "model.safetensors.index.json",
        ),
    ] {
        let said = case.run(&["inspect", folder, "--json"]);
        let path = said.json()["path"].as_str().expect("a path").to_owned();
        assert!(path.ends_with(taken), "{path}");
        assert_says(&said, passed_over);
    }
    let said = case.merge(&case.passthrough(Path::new("variant")), "out", &[]);
    assert_says(&said, "passed over in its folder: model.fp16.safetensors");
    // Meta's own file beside the parts that loaders take, and an index of a variant.
    let folder = case.out.path().join("parts");
    std::fs::create_dir(&folder).expect("made");
    let parts = case.inputs.join("single-and-index");
    let index = "model.safetensors.index.json";
    for (from, to) in [
        (index, index),
        (index, "model.safetensors.index.fp32.json"),
        (
            "model-00001-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
        ),
        (
            "model-00002-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ),
        ("model.safetensors", "consolidated.safetensors"),
    ] {
        std::fs::copy(parts.join(from), folder.join(to)).expect("copied");
    }
    let said = case.run(&["inspect", &folder.display().to_string(), "--json"]);
    let path = said.json()["path"].as_str().expect("a path").to_owned();
    assert!(path.ends_with(index), "{path}");
    assert_says(&said, "consolidated.safetensors");
}

#[cfg(unix)]
#[test]
fn a_model_in_the_cache_of_the_hub_is_read_as_it_is() {
    let case = Case::new("variant-files");
    let root = case.out.path().join("models--org--tiny");
    let (blobs, snapshot) = (root.join("blobs"), root.join("snapshots/abc123"));
    std::fs::create_dir_all(&blobs).expect("made");
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::create_dir_all(root.join("snapshots/older")).expect("made");
    std::fs::create_dir_all(root.join("refs")).expect("made");
    std::fs::write(root.join("refs/main"), "abc123").expect("written");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(case.inputs.join("variant").join(name), blobs.join(name)).expect("copied");
        let target = Path::new("../../blobs").join(name);
        std::os::unix::fs::symlink(target, snapshot.join(name)).expect("linked");
    }
    case.merge(&case.passthrough(&root), "out", &[]);
    assert_eq!(
        case.names("out"),
        ["README.md", "config.json", "model.safetensors"]
    );
    let card = std::fs::read_to_string(case.out.path().join("out/README.md")).expect("readable");
    assert!(card.contains("org/tiny"), "{card}");
}

#[test]
fn modules_that_the_code_of_a_model_imports_travel_along() {
    let case = Case::new("helper-modules-of-remote-code");
    case.merge("merge.yaml", "out", &[]);
    let expected = [
        "LICENSE",
        "README.md",
        "config.json",
        "configuration_x.py",
        "conversation.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_x.py",
        "resampler.py",
    ];
    assert_eq!(case.names("out"), expected);
}

#[test]
fn modules_of_sentence_transformers_travel_along() {
    let case = Case::new("sentence-transformers-modules");
    case.merge("merge.yaml", "out", &[]);
    let expected = [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(case.names("out"), expected);
    // In place of another model, its modules go.
    let other = Case::new("variant-files");
    let recipe = case.passthrough(&other.inputs.join("variant"));
    case.merge(&recipe, "out", &["--force"]);
    assert_eq!(
        case.names("out"),
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors"
        ]
    );
}

#[test]
fn recipes_of_mergekit_run_as_they_are_published() {
    let case = Case::new("mergekit-notations");
    case.merge("tokenizer.yaml", "tokenizer", &[]);
    let said = case.merge("slerp.yaml", "slerp", &[]);
    assert_says(&said, "slerp has no use for `normalize` (line");
    // Names of the hub are looked for there; none of this needs the network.
    let said = case.run(&[
        "merge",
        "ids.yaml",
        "--out",
        &case.folder("ids"),
        "--offline",
    ]);
    assert_eq!(said.code, Some(1));
    assert_says(&said, "hf://org/model-a");
    let copy = |from: &str, to: &str| {
        let to = case.out.path().join(to);
        std::fs::create_dir_all(&to).expect("made");
        for entry in std::fs::read_dir(case.inputs.join(from)).expect("a folder") {
            let path = entry.expect("readable").path();
            std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    };
    // A folder of that name wins, and models may be maps.
    copy("a", "org/model-a");
    copy("b", "org/model-b");
    let recipe = "merge_method: linear\nmodels:\n- model: {model: {path: org/model-a, revision: v1}, override_architecture: \
                  X}\n  parameters: {weight: 1}\n- {path: org/model-b, parameters: {weight: 1}}\ntokenizer: {source: union, \
                  pad_to_multiple_of: 8}\nchat_template: chatml\n";
    std::fs::write(case.out.path().join("r.yaml"), recipe).expect("written");
    let said = vlmerge_in(case.out.path(), &["merge", "r.yaml", "--out", "maps/"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_says(&said, "`override_architecture` is passed over");
    assert_eq!(
        case.config("maps")["vocab_size"]
            .as_u64()
            .expect("a number")
            % 8,
        0
    );
    let text = std::fs::read_to_string(case.out.path().join("maps/tokenizer_config.json"))
        .expect("readable");
    assert!(text.contains("<|im_start|>"), "{text}");
}

#[test]
fn small_refusals_are_gone_or_say_the_way_on() {
    let case = Case::new("small-refusals");
    let said = case.run(&["inspect", "generator.ckpt", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let out = case
        .out
        .path()
        .join("ids.safetensors")
        .display()
        .to_string();
    let said = case.run(&["merge", "ids.yaml", "--out", &out]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for (file, dtype) in [("e8m0.safetensors", "F8_E8M0"), ("f4.safetensors", "F4")] {
        let said = case.run(&["inspect", file, "--json"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(!said.json()["dtypes"][dtype].is_null(), "{}", said.stdout);
    }
    // Rows that only fill up, which one of the two models has: 16 of them, as in the base or the first.
    for (recipe, n_rows) in [("padded.yaml", 16), ("padded-base.yaml", 16)] {
        case.merge(recipe, "padded", &["--force"]);
        assert_eq!(case.config("padded")["vocab_size"], n_rows, "{recipe}");
    }
}

#[test]
fn names_with_another_prefix_are_told_and_embeddings_stand_for_a_missing_head() {
    let case = Case::new("on-missing-hint-merges-nothing");
    for recipe in ["bert.yaml", "bert-copy.yaml"] {
        let said = case.run(&["merge", recipe, "--out", &case.folder("bert")]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert_says(
            &said,
            "names begin with nothing in without-prefix and with `bert.`",
        );
        assert_says(&said, "rename: [{ from: '^', to: 'bert.' }]");
    }
    let tensor = |path: &Path, key: &str| -> Vec<f32> {
        let bytes = values(path).remove(key).expect("is there");
        let numbers = bytes.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    let embeddings = tensor(
        &case.inputs.join("tied/model.safetensors"),
        "model.embed_tokens.weight",
    );
    let head = tensor(
        &case.inputs.join("tied-with-head/model.safetensors"),
        "lm_head.weight",
    );
    for recipe in ["tied.yaml", "tied-copy.yaml"] {
        let said = case.merge(recipe, "tied", &["--force"]);
        assert_says(&said, "21 tensors combined");
        let merged = tensor(
            &case.out.path().join("tied/model.safetensors"),
            "lm_head.weight",
        );
        // mergekit 0.1.5: the mean of the one's embeddings and the other's head.
        for ((merged, one), other) in merged.iter().zip(&embeddings).zip(&head) {
            assert_eq!(*merged, (one + other) / 2.0);
        }
        assert_eq!(case.config("tied")["tie_word_embeddings"], false);
    }
}

#[test]
fn what_is_said_of_quantized_weights_stays_behind_and_all_else_travels() {
    let case = Case::new("mergekit-notations");
    let model = case.out.path().join("model");
    std::fs::create_dir_all(model.join("language_model")).expect("made");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(case.inputs.join("a").join(name), model.join(name)).expect("copied");
    }
    let travels = [
        "MODEL_LICENSE",
        "NOTICE.txt",
        "alphabet.json",
        "chat_template.jinja",
        "generation_config.json",
        "language_model/unigrams.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.model.v3",
        "video_preprocessor_config.json",
    ];
    let stays = [
        "hf_quant_config.json",
        "quantize_config.json",
        "quantization_config.json",
        "training_args.bin",
        "trainer_state.json",
        "events.out.tfevents.1",
    ];
    for name in travels.iter().chain(&stays) {
        std::fs::write(model.join(name), "{}").expect("written");
    }
    case.merge(&case.passthrough(&model), "out", &[]);
    let mut expected = [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    .to_vec();
    expected.extend(travels);
    expected.sort_unstable();
    assert_eq!(case.names("out"), expected);
}

#[test]
fn a_merge_is_verified_and_damage_is_found() {
    let case = Case::new("layer-types-not-updated");
    case.merge("qwen3.yaml", "out", &[]);
    let out = case.folder("out");
    let outcomes = |said: &Said| -> BTreeMap<String, String> {
        let checks = said.json()["checks"].as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        checks
            .iter()
            .map(|check| (text(&check["name"]), text(&check["outcome"])))
            .collect()
    };
    for more in [
        &["--against", "qwen3.yaml"][..],
        &["--inputs", "."],
        &["--inputs", ".", "--full"],
        &[],
    ] {
        let said = case.run(&[&["verify", &out, "--json"], more].concat());
        assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
        let outcomes = outcomes(&said);
        assert_eq!(outcomes["config"], "passed", "{}", said.stdout);
        assert_eq!(outcomes["finite"], "passed");
        let recipe = if more.is_empty() { "recipe" } else { "values" };
        assert_eq!(
            outcomes[recipe],
            if more.is_empty() { "skipped" } else { "passed" }
        );
    }
    // A bit of the weights, a number of the configuration.
    let weights = case.out.path().join("out/model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("readable");
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).expect("written");
    let config = case.out.path().join("out/config.json");
    let text = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(
        &config,
        text.replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 4"),
    )
    .expect("written");
    let said = case.run(&["verify", &out, "--inputs", ".", "--full", "--json"]);
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    let outcomes = outcomes(&said);
    assert_eq!(
        (outcomes["values"].as_str(), outcomes["config"].as_str()),
        ("failed", "failed"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout
            .contains("`num_hidden_layers` is 4; `model.layers` has 6 layers"),
        "{}",
        said.stdout
    );
}
