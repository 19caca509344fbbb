//! `vlmerge verify`: passes what a merge wrote, and finds each kind of damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::io::OpenOptions;
use serde_json::{Value, json};

use crate::program::{Said, vlmerge_in};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// A folder to work in, with copies of models of the fixtures.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// With copies of folders of the fixtures.
    fn with(models: &[&str]) -> Self {
        let folder = Self::new();
        for model in models {
            let from = Path::new(FIXTURES).join(model);
            let to = folder.path(
                from.file_name()
                    .and_then(|name| name.to_str())
                    .expect("a name"),
            );
            std::fs::create_dir(&to).expect("made");
            for entry in std::fs::read_dir(&from).expect("a folder") {
                let path = entry.expect("readable").path();
                std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
            }
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn run(&self, arguments: &[&str]) -> Said {
        vlmerge_in(self.0.path(), arguments)
    }

    fn merge(&self, arguments: &[&str]) {
        let said = self.run(&[&["merge"], arguments].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    }

    /// What `verify` says with these arguments: the exit code, and of each check its outcome and its findings.
    fn verify(&self, arguments: &[&str]) -> Verdict {
        let said = self.run(&[&["verify", "--json"], arguments].concat());
        assert!(matches!(said.code, Some(0 | 1)), "{}", said.stderr);
        Verdict::of(&said)
    }

    /// Changes a file of settings.
    fn set(&self, name: &str, key: &str, value: Option<Value>) {
        let text = std::fs::read_to_string(self.path(name)).expect("readable");
        let mut settings: Value = serde_json::from_str(&text).expect("JSON");
        let object = settings.as_object_mut().expect("an object");
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.remove(key),
        };
        self.write(name, settings.to_string());
    }
}

struct Verdict {
    code: i32,
    checks: BTreeMap<String, (String, String)>,
}

impl Verdict {
    fn of(said: &Said) -> Self {
        let document = said.json();
        assert_eq!(document["schema"], "vlmerge.verify/1");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let checks = document["checks"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|check| {
                let findings = check["findings"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(text);
                let outcome = (
                    text(&check["outcome"]),
                    findings.collect::<Vec<_>>().join("\n"),
                );
                (text(&check["name"]), outcome)
            });
        let checks: BTreeMap<_, _> = checks.collect();
        let code = said.code.expect("it ended by itself");
        let any_failed = checks.values().any(|(outcome, _)| outcome == "failed");
        assert_eq!(document["passed"], !any_failed);
        assert_eq!(code, i32::from(any_failed));
        Self { code, checks }
    }

    fn outcome(&self, check: &str) -> &str {
        self.checks
            .get(check)
            .map_or("not made", |(outcome, _)| outcome)
    }

    /// Asserts that this check alone failed, with these words.
    fn assert_failed(&self, check: &str, words: &str) {
        assert_eq!(self.code, 1, "{:#?}", self.checks);
        for (name, (outcome, findings)) in &self.checks {
            assert_eq!(
                outcome == "failed",
                name == check,
                "{name}: {findings}\n{:#?}",
                self.checks
            );
        }
        let (_, findings) = &self.checks[check];
        assert!(findings.contains(words), "{findings}");
    }

    fn assert_said(&self, check: &str, outcome: &str, words: &str) {
        let (found, findings) = self
            .checks
            .get(check)
            .unwrap_or_else(|| panic!("no {check}: {:#?}", self.checks));
        assert_eq!(found, outcome, "{check}: {findings}");
        assert!(findings.contains(words), "{check}: {findings}");
    }

    fn assert_passed(&self) {
        assert_eq!(self.code, 0, "{:#?}", self.checks);
    }
}

/// Where each tensor of a safetensors file begins, and its bytes.
fn places(path: &Path) -> Vec<(String, usize, usize, usize)> {
    let file = merge::io::open(path, &OpenOptions::default()).expect("it opens");
    let bytes = std::fs::read(path).expect("readable");
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n_header]).expect("JSON");
    let tensors = file.tensors().map(|(name, info)| {
        let begin = header[name]["data_offsets"][0].as_u64().expect("a number") as usize;
        (
            name.to_owned(),
            8 + n_header + begin,
            info.n_elements(),
            info.dtype.size_bytes(),
        )
    });
    tensors.collect()
}

/// Flips the lowest bit of one element of each tensor in turn, and asks whether `verify` names it.
fn assert_each_damage_is_found(folder: &Folder, weights: &str, arguments: &[&str]) {
    let path = folder.path(weights);
    let good = std::fs::read(&path).expect("readable");
    for (index, (name, begin, n_elements, size)) in places(&path).into_iter().enumerate() {
        let element = [0, n_elements / 2, n_elements - 1][index % 3];
        let mut bad = good.clone();
        bad[begin + element * size] ^= 1;
        std::fs::write(&path, bad).expect("written");
        let verdict = folder.verify(&[arguments, &["--full"]].concat());
        verdict.assert_failed(
            "values",
            &format!("`{name}`: 1 elements differ from what the recipe gives, the first is element {element}"),
        );
    }
    std::fs::write(&path, good).expect("written");
}

#[test]
fn merges_of_each_kind_pass_and_each_damaged_element_is_found() {
    let folder = Folder::with(&[
        "mergekit/words_a",
        "mergekit/words_b",
        "mergekit/words_base",
        "quantized/gptq_a",
        "quantized/gptq_b",
    ]);
    // Models, with a union of their tokens.
    let union = "merge_method: ties\nbase_model: words_base\nmodels:\n- {model: words_a, parameters: {weight: 0.7, \
                 density: 0.5}}\n- {model: words_b, parameters: {weight: 0.4, density: 0.5}}\ntokenizer_source: \
                 union\n";
    // Layers of a model, once more.
    let slices = "merge_method: passthrough\nslices:\n- sources: [{model: words_a, layer_range: [0, 1]}]\n- sources: \
                  [{model: words_a, layer_range: [0, 1]}]\n";
    let drawn = "merge_method: dare_linear\nbase_model: words_base\nmodels:\n- {model: words_a, parameters: {weight: \
                 0.7, density: 0.5}}\ntokenizer_source: base\n";
    // A result of another document.
    let documents = "name: first\nmerge_method: slerp\nbase_model: words_a\nmodels: [words_a, words_base]\n\
                     parameters: {t: 0.4}\ntokenizer_source: base\n---\nmerge_method: linear\nmodels: [first, \
                     words_a]\nparameters: {weight: 1}\ntokenizer_source: base\n";
    let codes = "merge_method: linear\nmodels: [gptq_a, gptq_b]\nparameters: {weight: 1}\n";
    for (name, yaml) in [
        ("union", union),
        ("slices", slices),
        ("drawn", drawn),
        ("documents", documents),
        ("codes", codes),
    ] {
        let (recipe, out) = (format!("{name}.yaml"), format!("{name}/"));
        folder.write(&recipe, yaml);
        folder.merge(&[&recipe, "--out", &out]);
        for more in [
            &["--against", &recipe][..],
            &["--against", &recipe, "--full"],
            &["--inputs", "."],
            &["--inputs", ".", "--full"],
            &[],
        ] {
            folder
                .verify(&[&[out.as_str()], more].concat())
                .assert_passed();
        }
        let weights = format!("{name}/model.safetensors");
        assert_each_damage_is_found(&folder, &weights, &[&out, "--inputs", "."]);
    }
}

#[test]
fn merges_of_experts_pass_in_every_container() {
    let folder = Folder::new();
    let specific = format!("{FIXTURES}/ckpt/all_moe_pretrain.ckpt");
    let seed = format!("{FIXTURES}/ckpt/ufo_pretrain.ckpt");
    let inputs = format!("{FIXTURES}/ckpt");
    for (out, verb, more) in [
        ("a.safetensors", "interpolate", &["--ratio", "0.3"][..]),
        (
            "b.ckpt",
            "interpolate",
            &["--ratio", "0.3", "--dtype", "bf16"],
        ),
        (
            "c.pt",
            "arithmetic",
            &["--seed-checkpoint", &seed, "--lambda", "0.4"],
        ),
        (
            "d.safetensors",
            "interpolate",
            &["--ratio", "0.3", "--shard-size", "100KB"],
        ),
    ] {
        let said = folder.run(&[&[verb, &specific, "--out", out], more].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let out = match folder.path(out).exists() {
            true => out.to_owned(),
            false => format!("{out}.index.json"),
        };
        let verdict = folder.verify(&[&out, "--inputs", &inputs, "--full"]);
        verdict.assert_passed();
        assert_eq!(verdict.outcome("values"), "passed");
        assert_eq!(verdict.outcome("config"), "skipped");
    }
    assert_each_damage_is_found(
        &folder,
        "a.safetensors",
        &["a.safetensors", "--inputs", &inputs],
    );
}

/// A model of one tensor per name, filled with a value.
fn model(path: &Path, tensors: &[(&str, &[usize], f32)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for &(name, shape, value) in tensors {
        let first = data.len();
        data.extend(value.to_le_bytes().repeat(shape.iter().product()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [first, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
}

/// An adapter for modules, with one value in each second factor.
fn adapter(folder: &Folder, name: &str, modules: &[(&str, f32)]) {
    let names: Vec<[String; 2]> = (modules.iter())
        .map(|(module, _)| {
            ["A", "B"].map(|half| format!("base_model.model.{module}.lora_{half}.weight"))
        })
        .collect();
    let tensors: Vec<(&str, &[usize], f32)> = (names.iter().zip(modules))
        .flat_map(|([a, b], (_, value))| {
            [
                (a.as_str(), &[1, 3][..], 2.0),
                (b.as_str(), &[2, 1][..], *value),
            ]
        })
        .collect();
    model(
        &folder.path(name).join("adapter_model.safetensors"),
        &tensors,
    );
    let settings = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
    folder.write(&format!("{name}/adapter_config.json"), settings.to_string());
}

#[test]
fn each_adapter_must_be_wholly_applied_and_change_something() {
    let folder = Folder::new();
    let weights: [(&str, &[usize], f32); 3] = [
        ("one.weight", &[2, 3], 1.0),
        ("two.weight", &[2, 3], 1.0),
        ("norm.weight", &[3], 1.0),
    ];
    model(&folder.path("base/model.safetensors"), &weights);
    adapter(&folder, "tuned", &[("one", 3.0), ("two", 4.0)]);
    adapter(&folder, "half", &[("one", 3.0), ("two", 0.0)]);
    adapter(&folder, "untrained", &[("one", 0.0), ("two", 0.0)]);
    adapter(&folder, "stranger", &[("one", 3.0), ("three", 4.0)]);
    let recipe = |name: &str, adapters: &str| {
        let yaml = format!("merge_method: passthrough\nmodels: [base+{adapters}]\n");
        folder.write(&format!("{name}.yaml"), yaml);
        format!("{name}.yaml")
    };
    let stacked = recipe("stacked", "tuned*0.5+half");
    folder.merge(&[&stacked, "--out", "stacked/"]);
    let verdict = folder.verify(&["stacked", "--against", &stacked, "--full"]);
    verdict.assert_passed();
    verdict.assert_said(
        "adapters",
        "note",
        "half: 1 of 2 weights stay as they are, `two.weight`",
    );
    assert_each_damage_is_found(
        &folder,
        "stacked/model.safetensors",
        &["stacked", "--inputs", "."],
    );

    let tuned = recipe("tuned", "tuned");
    folder.merge(&[&tuned, "--out", "merged/"]);
    let verdict = folder.verify(&["merged", "--against", &tuned]);
    verdict.assert_passed();
    verdict.assert_said("adapters", "passed", "tuned: 4 tensors change 2 weights");

    let untrained = recipe("untrained", "untrained");
    folder.merge(&[&untrained, "--out", "idle/"]);
    let verdict = folder.verify(&["idle", "--against", &untrained]);
    verdict.assert_failed(
        "adapters",
        "untrained: changes none of 2 weights; its factors make zero",
    );
    let nothing = recipe("nothing", "tuned*0");
    folder.merge(&[&nothing, "--out", "nothing/"]);
    let verdict = folder.verify(&["nothing", "--against", &nothing]);
    verdict.assert_failed("adapters", "its weight is 0");

    // The base alone is not what the recipe with the adapter makes.
    let verdict = folder.verify(&["base", "--against", &tuned]);
    verdict.assert_failed("values", "`one.weight`: 6 elements differ");
    // A tensor that fits nothing.
    let stranger = recipe("stranger", "stranger");
    let verdict = folder.verify(&["merged", "--against", &stranger]);
    verdict.assert_failed(
        "adapters",
        "`three.weight`, which base/model.safetensors does not have",
    );
}

#[test]
fn tensors_that_should_have_changed_are_looked_for() {
    let folder = Folder::new();
    let weights = |value: f32| -> [(&str, &[usize], f32); 2] {
        [("one.weight", &[2, 3], value), ("two.weight", &[2], 1.0)]
    };
    model(&folder.path("a/model.safetensors"), &weights(1.0));
    model(&folder.path("b/model.safetensors"), &weights(2.0));
    let recipe = |name: &str, models: &str| {
        let yaml = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\n");
        folder.write(&format!("{name}.yaml"), yaml);
        format!("{name}.yaml")
    };
    let (good, idle) = (recipe("good", "a, b"), recipe("idle", "a, a"));
    folder.merge(&[&good, "--out", "good/"]);
    let verdict = folder.verify(&["good", "--against", &good]);
    verdict.assert_passed();
    verdict.assert_said("changed", "note", "1 of 2 tensors");
    folder.merge(&[&idle, "--out", "idle/"]);
    let verdict = folder.verify(&["idle", "--against", &idle]);
    verdict.assert_failed("changed", "all 2 tensors");
    // One model alone is not combined with anything.
    let single = recipe("single", "a");
    folder.merge(&[&single, "--out", "single/"]);
    let verdict = folder.verify(&["single", "--against", &single]);
    verdict.assert_passed();
    assert_eq!(verdict.outcome("changed"), "passed");
}

#[test]
fn values_that_are_no_numbers_are_found() {
    let folder = Folder::new();
    let weights: [(&str, &[usize], f32); 2] =
        [("one.weight", &[70_000, 3], 1.0), ("two.weight", &[2], 1.0)];
    let path = folder.path("a/model.safetensors");
    model(&path, &weights);
    folder.verify(&["a"]).assert_passed();
    let good = std::fs::read(&path).expect("readable");
    let (name, begin, ..) = places(&path)[0].clone();
    for (element, value) in [
        (0, f32::NAN),
        (199_999, f32::INFINITY),
        (209_999, f32::NEG_INFINITY),
    ] {
        let mut bad = good.clone();
        bad[begin + 4 * element..][..4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bad).expect("written");
        let words = format!("`{name}`: element {element} is {}", f64::from(value));
        folder.verify(&["a"]).assert_failed("finite", &words);
    }
}

#[test]
fn codes_must_be_said_to_be_codes() {
    let folder = Folder::with(&["quantized/gptq", "quantized/fp8_blocks", "mergekit/words_a"]);
    let verdict = folder.verify(&["gptq"]);
    assert_eq!(
        verdict.outcome("quantization"),
        "passed",
        "{:#?}",
        verdict.checks
    );
    // Settings of older programs, then none.
    folder.set("gptq/config.json", "quantization_config", None);
    folder.write("gptq/quantize_config.json", "{}");
    assert_eq!(folder.verify(&["gptq"]).outcome("quantization"), "note");
    std::fs::remove_file(folder.path("gptq/quantize_config.json")).expect("removed");
    let verdict = folder.verify(&["gptq"]);
    verdict.assert_said(
        "quantization",
        "failed",
        "loaders take the codes for weights",
    );
    // A file alone.
    std::fs::copy(
        folder.path("gptq/model.safetensors"),
        folder.path("alone.safetensors"),
    )
    .expect("copied");
    folder
        .verify(&["alone.safetensors"])
        .assert_said("quantization", "note", "weights are GPTQ");
    // Settings without codes, and scales without.
    folder
        .verify(&["words_a"])
        .assert_said("quantization", "passed", "");
    folder.set(
        "words_a/config.json",
        "quantization_config",
        Some(json!({"quant_method": "gptq", "bits": 4})),
    );
    let verdict = folder.verify(&["words_a"]);
    verdict.assert_said("quantization", "failed", "no tensor is quantized");
    model(
        &folder.path("cast/model.safetensors"),
        &[
            ("m.weight", &[128, 128], 1.0),
            ("m.weight_scale_inv", &[1, 1], 1.0),
        ],
    );
    folder
        .verify(&["cast"])
        .assert_said("quantization", "failed", "m.weight_scale_inv");
}

#[test]
fn configuration_tokenizer_and_template_must_fit() {
    let folder = Folder::with(&["mergekit/words_a"]);
    let verdict = folder.verify(&["words_a"]);
    verdict.assert_passed();
    for check in [
        "config",
        "tokenizer",
        "chat template",
        "quantization",
        "finite",
    ] {
        assert_eq!(verdict.outcome(check), "passed", "{check}");
    }
    let files = ["config.json", "tokenizer_config.json", "tokenizer.json"]
        .map(|name| format!("words_a/{name}"));
    let [config, settings, tokenizer] = &files;
    let good = files
        .each_ref()
        .map(|name| std::fs::read(folder.path(name)).expect("readable"));
    let restore = || {
        for (name, bytes) in files.iter().zip(&good) {
            folder.write(name, bytes);
        }
    };
    for (key, value, words) in [
        (
            "num_hidden_layers",
            json!(2),
            "`num_hidden_layers` is 2; `model.layers` has 1",
        ),
        ("vocab_size", json!(9), "`vocab_size` is 9"),
        (
            "layer_types",
            json!(["full_attention", "full_attention"]),
            "layer_types",
        ),
        (
            "tie_word_embeddings",
            json!(true),
            "`lm_head.weight` is not `model.embed_tokens.weight`",
        ),
        ("pad_token_id", json!(7), "`pad_token_id` is 7"),
    ] {
        folder.set(config, key, Some(value));
        folder.verify(&["words_a"]).assert_failed("config", words);
        restore();
    }
    for (key, value) in [
        ("pad_token_id", json!(-1)),
        ("pad_token_id", json!(6)),
        ("eos_token_id", json!([5, 3])),
    ] {
        folder.set(config, key, Some(value));
        folder.verify(&["words_a"]).assert_passed();
        restore();
    }
    // The end of texts.
    folder.set(config, "eos_token_id", Some(json!(11)));
    folder
        .verify(&["words_a"])
        .assert_failed("tokenizer", "`eos_token_id` 11 is the id of no token");
    folder.set(config, "eos_token_id", Some(json!(5)));
    folder.set(settings, "eos_token", Some(json!({"content": "dog"})));
    folder
        .verify(&["words_a"])
        .assert_failed("tokenizer", "ends texts with `dog` (3), the model with {5}");
    folder.set(config, "eos_token_id", Some(json!([5, 3])));
    folder.verify(&["words_a"]).assert_passed();
    restore();
    // More ids than rows.
    let text = String::from_utf8(good[2].clone()).expect("UTF-8");
    folder.write(tokenizer, text.replace("\"id\": 6", "\"id\": 7"));
    folder
        .verify(&["words_a"])
        .assert_failed("tokenizer", "ids up to 7");
    restore();
    folder.set(
        settings,
        "chat_template",
        Some(json!("{{ '<|im_start|>' + message }} <a>")),
    );
    let verdict = folder.verify(&["words_a"]);
    verdict.assert_passed();
    verdict.assert_said("chat template", "note", "no token `<|im_start|>`");
    restore();
    // A layer that is gone.
    let stack = |layers: &[usize]| {
        let names: Vec<String> = layers
            .iter()
            .map(|layer| format!("model.layers.{layer}.norm.weight"))
            .collect();
        let tensors: Vec<(&str, &[usize], f32)> = names
            .iter()
            .map(|name| (name.as_str(), &[2][..], 1.0))
            .collect();
        model(&folder.path("stack/model.safetensors"), &tensors);
        folder.write(
            "stack/config.json",
            r#"{"model_type": "llama", "num_hidden_layers": 4}"#,
        );
        folder.verify(&["stack"])
    };
    stack(&[0, 1, 2, 3]).assert_passed();
    stack(&[0, 1, 3]).assert_failed("config", "`model.layers` has no tensor of the layers [2]");
    stack(&[0, 1, 2]).assert_failed(
        "config",
        "`num_hidden_layers` is 4; `model.layers` has 3 layers",
    );
    // A head that is gone.
    let recipe = "merge_method: linear\nmodels: [words_a]\nparameters: {weight: 1}\n";
    folder.write("r.yaml", recipe);
    let (head, others): (Vec<_>, Vec<_>) = {
        let file =
            merge::io::open(&folder.path("words_a"), &OpenOptions::default()).expect("it opens");
        let all: Vec<(String, Vec<usize>)> = (file.tensors())
            .map(|(name, info)| (name.to_owned(), info.shape.clone()))
            .collect();
        all.into_iter()
            .partition(|(name, _)| name == "lm_head.weight")
    };
    assert_eq!(head.len(), 1);
    let others: Vec<(&str, &[usize], f32)> = (others.iter())
        .map(|(name, shape)| (name.as_str(), shape.as_slice(), 1.0))
        .collect();
    model(&folder.path("words_a/model.safetensors"), &others);
    folder
        .verify(&["words_a"])
        .assert_failed("config", "no tensor is a head");
    folder.set(config, "tie_word_embeddings", Some(json!(true)));
    folder.verify(&["words_a"]).assert_passed();
}

#[test]
fn inputs_are_known_by_their_hashes() {
    let folder = Folder::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        model(
            &folder.path(name).join("model.safetensors"),
            &[("one.weight", &[2, 3], value)],
        );
    }
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [a, b]\n";
    folder.write("r.yaml", yaml);
    folder.merge(&["r.yaml", "--out", "hashed/"]);
    folder.merge(&["r.yaml", "--out", "bare/", "--no-hash"]);
    let against = |out: &str| folder.verify(&[out, "--against", "r.yaml"]);
    assert_eq!(against("hashed").outcome("inputs"), "passed");
    against("bare").assert_said("inputs", "note", "only sizes were compared");
    // The same numbers behind a longer header.
    let path = folder.path("b/model.safetensors");
    let good = std::fs::read(&path).expect("readable");
    let mut other = good.clone();
    let end = 8 + u64::from_le_bytes(good[..8].try_into().expect("eight bytes")) as usize;
    other.splice(end..end, *b"        ");
    other[..8].copy_from_slice(&(end as u64).to_le_bytes());
    std::fs::write(&path, &other).expect("written");
    let verdict = against("hashed");
    verdict.assert_failed(
        "inputs",
        "model.safetensors is not the file that the output was made from",
    );
    against("bare").assert_failed("inputs", "model.safetensors");
    // Other numbers of the same length.
    let mut changed = good.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    std::fs::write(&path, &changed).expect("written");
    assert_eq!(against("hashed").outcome("inputs"), "failed");
    assert_eq!(against("hashed").outcome("values"), "failed");
    assert_eq!(against("bare").outcome("values"), "failed");
    std::fs::write(&path, &good).expect("written");
    against("hashed").assert_passed();
    // Another number of files.
    folder.write(
        "one.yaml",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [a]\n",
    );
    let verdict = folder.verify(&["hashed", "--against", "one.yaml"]);
    verdict.assert_said("inputs", "failed", "made from 2 files, the recipe has 1");
}

#[test]
fn wrong_arguments_and_missing_files_have_their_own_exit_codes() {
    let folder = Folder::new();
    model(
        &folder.path("a/model.safetensors"),
        &[("one.weight", &[2], 1.0)],
    );
    folder.write("bad.yaml", "merge_method: nonsense\nmodels: [a]\n");
    for (arguments, code) in [
        (&["verify", "a"][..], 0),
        (&["verify", "a", "--against", "bad.yaml"], 2),
        (
            &["verify", "a", "--against", "bad.yaml", "--inputs", "."],
            2,
        ),
        (&["verify"], 2),
        (&["verify", "a", "--against", "none.yaml"], 1),
        (&["verify", "a", "--inputs", "."], 1),
        (&["verify", "none"], 1),
    ] {
        let said = folder.run(arguments);
        assert_eq!(
            said.code,
            Some(code),
            "{arguments:?}: {}{}",
            said.stdout,
            said.stderr
        );
    }
    let said = folder.run(&["verify", "a"]);
    assert!(said.stdout.contains("passed   finite\n"), "{}", said.stdout);
    assert!(said.stdout.contains("skipped  config\n"), "{}", said.stdout);
}
