//! Low-rank adapters: merged by recipe and by command, named in the card, refused by name.

use std::path::{Path, PathBuf};

use merge::Checkpoint;
use merge::io::OpenOptions;
use serde_json::{Value, json};

use crate::program::vlmerge;

/// A folder with the model `base/`, and adapters.
struct Folder(tempfile::TempDir);

/// A tensor's name, shape, and the one value that it is filled with.
type Tensor = (&'static str, &'static [usize], f32);

fn write(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for &(name, shape, value) in tensors {
        let first = data.len();
        data.extend(value.to_le_bytes().repeat(shape.iter().product()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [first, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
}

fn values(path: &Path, key: &str) -> Vec<f64> {
    let checkpoint: Checkpoint = merge::io::open(path, &OpenOptions::default()).expect("opens");
    let info = checkpoint.require(key).expect("is there").clone();
    let mut values = vec![0.0; info.n_elements()];
    let bytes = checkpoint.read_all(key).expect("readable");
    merge::decode_f64(key, info.dtype, &bytes, &mut values).expect("numbers");
    values
}

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        let base: [Tensor; 2] = [("fc.weight", &[2, 3], 1.0), ("norm.weight", &[3], 1.0)];
        write(&folder.path("base/model.safetensors"), &base);
        let card = "---\nlicense: mit\n---\n# Base\n";
        std::fs::write(folder.path("base/README.md"), card).expect("written");
        folder.adapter("tuned", json!({"base_model_name_or_path": "org/Base"}));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// An adapter that adds 2 · 3 · 5 to every element of `fc.weight`.
    fn adapter(&self, name: &str, settings: Value) {
        let tensors: [Tensor; 2] = [
            ("base_model.model.fc.lora_A.weight", &[1, 3], 3.0),
            ("base_model.model.fc.lora_B.weight", &[2, 1], 5.0),
        ];
        let folder = self.path(name);
        write(&folder.join("adapter_model.safetensors"), &tensors);
        let mut all = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2});
        for (key, value) in settings.as_object().expect("an object") {
            all[key] = value.clone();
        }
        std::fs::write(folder.join("adapter_config.json"), all.to_string()).expect("written");
    }
}

#[test]
fn a_merge_with_an_adapter_names_it_in_card_and_metadata_and_runs_again_from_them() {
    let folder = Folder::new();
    let recipe = folder.path("recipe.yaml");
    let base = folder.text("base");
    let yaml = format!(
        "merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n- model: {base}+{}\nparameters: {{weight: 0.5}}\n",
        folder.text("tuned")
    );
    std::fs::write(&recipe, yaml).expect("written");
    let recipe = recipe.to_str().expect("UTF-8");
    let said = vlmerge(&["merge", recipe, "--dry-run"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("fc.weight  F32 [2, 3]"),
        "{}",
        said.stdout
    );
    assert_eq!(
        said.stderr, "",
        "the base has the name that the adapter gives it"
    );

    let out = folder.text("out/");
    let said = vlmerge(&["merge", recipe, "--out", &out]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let merged = folder.path("out/model.safetensors");
    assert_eq!(values(&merged, "fc.weight"), [16.0; 6]);
    assert_eq!(values(&merged, "norm.weight"), [1.0; 3]);
    let card = std::fs::read_to_string(folder.path("out/README.md")).expect("readable");
    for part in [
        "/tuned | adapter | not stated |",
        "/base | base | mit |",
        "| adapter\\_config.json | ",
        "| adapter\\_model.safetensors | ",
    ] {
        let part = part.replace("\\_", "_");
        let row = card.lines().find(|line| line.contains(&part));
        let row = row.unwrap_or_else(|| panic!("no {part} in {card}"));
        assert!(
            !part.contains("adapter_") || row.contains(" | BLAKE3 `"),
            "no hash in {row}"
        );
    }

    let at = folder.0.path().to_str().expect("UTF-8");
    let said = vlmerge(&["recipe", &out, "--inputs", at]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let line = format!("model: {base}+{}", folder.text("tuned"));
    assert!(said.stdout.contains(&line), "no {line} in {}", said.stdout);
    let again = folder.text("again.yaml");
    std::fs::write(&again, &said.stdout).expect("written");
    let said = vlmerge(&["merge", &again, "--out", &folder.text("twice/")]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let bytes = |path: &Path| std::fs::read(path).expect("readable");
    assert!(bytes(&merged) == bytes(&folder.path("twice/model.safetensors")));
}

#[test]
fn a_model_and_an_adapter_are_merged_without_a_recipe_from_safetensors_and_pickles() {
    let folder = Folder::new();
    let merge = |out: &str| {
        let model = format!("{}+{}", folder.text("base"), folder.text("tuned"));
        let said = vlmerge(&[
            "merge",
            &model,
            "--out",
            &folder.text(out),
            "--dtype",
            "bf16",
            "--json",
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let counts = ["n_copied", "n_computed", "n_combined"];
        assert_eq!(counts.map(|count| said.json()[count].clone()), [2, 1, 0]);
        assert_eq!(values(&folder.path(out), "fc.weight"), [31.0; 6]);
    };
    merge("one.safetensors");
    let [safe, pickle] = ["tuned/adapter_model.safetensors", "tuned/adapter_model.bin"];
    assert_eq!(
        vlmerge(&["convert", &folder.text(safe), &folder.text(pickle)]).code,
        Some(0)
    );
    std::fs::remove_file(folder.path(safe)).expect("removed");
    merge("two.safetensors");
}

#[test]
fn a_base_of_another_name_is_a_note_and_an_adapter_of_another_kind_an_error() {
    let folder = Folder::new();
    folder.adapter("other", json!({"base_model_name_or_path": "org/large"}));
    let merge = |adapter: &str| {
        let model = format!("{}+{}", folder.text("base"), folder.text(adapter));
        vlmerge(&["merge", &model, "--dry-run"])
    };
    let said = merge("other");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr.contains("made for `org/large`, merged into"),
        "{}",
        said.stderr
    );

    for (name, settings, part) in [
        (
            "dora",
            json!({"use_dora": true}),
            "needs `lora_magnitude_vector`",
        ),
        (
            "ia3",
            json!({"peft_type": "IA3"}),
            "adapters of the kind IA3 are not merged",
        ),
        (
            "pissa",
            json!({"init_lora_weights": "pissa"}),
            "`init_lora_weights: pissa`",
        ),
        (
            "text",
            json!({"lora_alpha": "two"}),
            "adapter_config.json: ",
        ),
    ] {
        folder.adapter(name, settings);
        let said = merge(name);
        assert_eq!(said.code, Some(1), "{name}");
        assert!(said.stderr.contains(part), "no {part} in {}", said.stderr);
    }
    let missing = merge("nowhere");
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.stderr.contains("nowhere/adapter_config.json"),
        "{}",
        missing.stderr
    );
}

/// A model of one weight whose difference to a model of zeros has the singular values 6 and 3.
fn two_ranks(path: &Path, scale: f32) {
    let mut values = [0.0f32; 12];
    values[0] = 6.0 * scale;
    values[5] = 3.0 * scale;
    let header = json!({"fc.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
                        "norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [48, 52]}});
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes.extend((1.0 + scale).to_le_bytes());
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn an_adapter_is_extracted_reported_and_merged_again() {
    let folder = Folder::new();
    for (name, scale) in [("zero.safetensors", 0.0), ("tuned.safetensors", 1.0)] {
        two_ranks(&folder.path(name), scale);
    }
    let [base, tuned] = ["zero.safetensors", "tuned.safetensors"].map(|name| folder.text(name));
    let out = folder.text("made");
    let extract = |more: &[&str]| {
        let mut arguments = vec!["extract-lora", &base, &tuned, "--out", &out];
        arguments.extend(more);
        vlmerge(&arguments)
    };
    let said = extract(&["--rank", "1", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    // Of 36 + 9 squares 9 are missed.
    let close = |value: &Value, expected: f64| {
        let value = value.as_f64().expect("a number");
        assert!((value - expected).abs() < 1e-6, "{value} {expected}");
    };
    close(&found["tensors"][0]["relative_error"], 0.2f64.sqrt());
    close(&found["tensors"][0]["energy"], 0.8);
    close(&found["left_out"][0]["relative_change"], 1.0);
    close(&found["relative_error"], (10.0f64 / 46.0).sqrt());
    let said = extract(&["--rank", "1"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("already exists"), "{}", said.stderr);

    // The smallest rank for 0.8 is 1, for 0.81 it is 2.
    for (share, rank) in [("0.8", 1), ("0.81", 2), ("1", 2)] {
        let said = extract(&["--energy", share, "--json", "--force"]);
        assert_eq!(said.json()["tensors"][0]["rank"], json!(rank), "{share}");
    }
    let said = extract(&["--rank", "2", "--save-whole", "--force"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("whole     norm.weight"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout
            .contains("1 tensors with factors, 1 whole, 0 changed"),
        "{}",
        said.stdout
    );
    let merged = folder.text("again.safetensors");
    let said = vlmerge(&["merge", &format!("{base}+{out}"), "--out", &merged]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for key in ["fc.weight", "norm.weight"] {
        let found = values(Path::new(&merged), key);
        let expected = values(Path::new(&tuned), key);
        assert!(
            found
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }
    let said = vlmerge(&["inspect", &format!("{out}/adapter_model.safetensors")]);
    assert!(
        said.stdout.contains("extract-lora --rank 2"),
        "{}",
        said.stdout
    );
}

#[test]
fn wrong_numbers_and_patterns_are_refused_before_anything_is_read() {
    let extract = |more: &[&str]| {
        let mut arguments = vec!["extract-lora", "no-base", "no-tuned", "--out", "nowhere"];
        arguments.extend(more);
        vlmerge(&arguments)
    };
    for (arguments, part) in [
        (&["--rank", "0"][..], "at least 1"),
        (&["--energy", "0"], "--energy must be above 0 and at most 1"),
        (
            &["--energy", "1.01"],
            "--energy must be above 0 and at most 1",
        ),
        (
            &["--energy", "nan"],
            "--energy must be above 0 and at most 1",
        ),
        (&[], "--rank"),
        (&["--rank", "1", "--include", "/(/"], "`/(/` is no pattern"),
    ] {
        let said = extract(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains(part), "no {part} in {}", said.stderr);
    }
    let said = extract(&["--rank", "1"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no-base"), "{}", said.stderr);
}

#[cfg(feature = "remote")]
#[test]
fn an_adapter_may_lie_on_the_hub_or_a_web_server() {
    use crate::range_server::Server;

    let (server, folder) = (Server::start(), Folder::new());
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let names = ["adapter_config.json", "adapter_model.safetensors"];
    let siblings = names.map(|name| json!({"rfilename": name}));
    let info = json!({"sha": commit, "siblings": siblings}).to_string();
    let api = "/api/models/org/tuned/revision/main";
    server.put(api, info.into_bytes(), "\"i\"");
    for name in names {
        let bytes = std::fs::read(folder.path("tuned").join(name)).expect("readable");
        let hub = format!("/org/tuned/resolve/{commit}/{name}");
        server.put(&hub, bytes.clone(), &format!("\"h-{name}\""));
        server.put(&format!("/web/{name}"), bytes, &format!("\"w-{name}\""));
    }
    for (index, address) in ["hf://org/tuned".to_owned(), server.address("/web")]
        .iter()
        .enumerate()
    {
        let out = folder.text(&format!("{index}.safetensors"));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .env("HF_ENDPOINT", server.address(""))
            .env_remove("HF_HUB_OFFLINE")
            .args(["--cache-dir", &folder.text("cache"), "merge"])
            .arg(format!("{}+{address}", folder.text("base")))
            .args(["--out", &out])
            .output()
            .expect("the program starts");
        let said = crate::program::Said::new(&output);
        assert_eq!(said.code, Some(0), "{address}: {}", said.stderr);
        assert_eq!(values(Path::new(&out), "fc.weight"), [31.0; 6]);
        let bytes = std::fs::read(&out).expect("readable");
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains(&format!("{address}/adapter_config.json")),
            "{text}"
        );
    }
}
