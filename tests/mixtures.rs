//! Mixtures of experts by the program: shuffled experts are refused or matched, spellings are converted, and flags that
//! change the number of experts say what they need.

use std::collections::BTreeMap;

use fixtures::{Raw, Set};
use tempfile::TempDir;

use crate::program::{ok, run};

type Tensors = BTreeMap<String, Raw>;

/// EVE's golden backbone and the same with its experts in another order.
fn pair(folder: &TempDir) -> Tensors {
    let set = Set::open("eve");
    let cases = set.cases("permute_experts");
    let case = cases.first().expect("a permutation");
    let model = case.tensors("input");
    let mut other = model.clone();
    other.extend(case.tensors("expected"));
    fixtures::write(&folder.path().join("a.safetensors"), &model);
    fixtures::write(&folder.path().join("b.safetensors"), &other);
    let recipe = format!(
        "merge_method: linear\nmodels: [{0}/a.safetensors, {0}/b.safetensors]\nparameters: {{ weight: 0.5 }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    model
}

#[test]
fn shuffled_experts_are_refused_with_what_mends_it_and_the_matching_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = pair(&folder);
    let said = run("merge {}/recipe.yaml --out {}/out.safetensors", &folder);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for words in ["no common order", "mlp_moe.moe", "align_experts: weights"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    assert!(!folder.path().join("out.safetensors").exists());
    let line =
        "merge {}/recipe.yaml --out {}/out.safetensors --align-experts weights --align-units";
    let said = ok(run(&format!("{line} --dry-run"), &folder));
    assert!(
        said.stderr.contains("moved, in the order"),
        "{}",
        said.stderr
    );
    let said = ok(run(&format!("{line} --json"), &folder)).json();
    let experts = said["alignment"]["experts"].as_array().expect("matchings");
    assert!(!experts.is_empty());
    for matching in experts {
        assert_eq!(matching["model"], "b.safetensors");
        assert!(matching["cosine"].as_f64().expect("a number") > 0.999);
    }
    assert!(
        said["alignment"]["units"]
            .as_array()
            .expect("networks")
            .len()
            > experts.len()
    );
    let out = fixtures::tensors(&folder.path().join("out.safetensors"));
    assert_eq!(
        out.keys().collect::<Vec<_>>(),
        model.keys().collect::<Vec<_>>()
    );
    for (key, raw) in &model {
        assert!(out[key].bytes == raw.bytes, "{key}");
    }
    let said = ok(run("recipe {}/out.safetensors", &folder));
    assert!(
        said.stdout.contains("align_experts: weights"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains("align_units: true"), "{}", said.stdout);
    // A copy merged with its model changes nothing, which alone is found.
    let said = run("verify {}/out.safetensors --inputs {} --full", &folder);
    assert!(said.stdout.contains("passed   values"), "{}", said.stdout);
    assert!(
        said.stdout.matches("FAILED").count() == 1 && said.stdout.contains("FAILED   changed"),
        "{}",
        said.stdout
    );
}

#[test]
fn flags_for_the_number_of_experts_say_what_they_need() {
    let folder = tempfile::tempdir().expect("a folder");
    pair(&folder);
    for (flags, words) in [
        ("--experts 2", "needs --grams"),
        ("--experts dense --by frequency", "needs --grams"),
        ("--experts dense --group", "the mean of all experts"),
        ("--experts 0", "a number of experts"),
        ("--align-units", "--group"),
        ("--experts 2 --to mixtral", "cannot be used with"),
        ("--to mixtral", "have no other spelling"),
    ] {
        let said = run(
            &format!("convert {{}}/a.safetensors {{}}/out.safetensors {flags}"),
            &folder,
        );
        assert_ne!(said.code, Some(0), "{flags}");
        assert!(said.stderr.contains(words), "{flags}: {}", said.stderr);
    }
    let said = run(
        "expand {}/a.safetensors {}/out.safetensors --to mixture",
        &folder,
    );
    assert!(said.stderr.contains("--n-experts"), "{}", said.stderr);
    ok(run(
        "convert {}/a.safetensors {}/dense.safetensors --experts dense",
        &folder,
    ));
    let said = ok(run("inspect {}/dense.safetensors", &folder));
    assert!(said.stdout.contains("eve"), "{}", said.stdout);
}

#[test]
fn a_folder_as_output_has_a_configuration_that_fits_and_a_file_has_a_note() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("made");
    let mut tensors = Tensors::new();
    for (name, shape) in [
        ("gate_proj", [5, 3]),
        ("up_proj", [5, 3]),
        ("down_proj", [3, 5]),
    ] {
        let raw = Raw {
            dtype: fixtures::Dtype::F32,
            shape: shape.to_vec(),
            bytes: (0..15_u8)
                .flat_map(|at| f32::from(at).to_le_bytes())
                .collect(),
        };
        tensors.insert(format!("model.layers.0.mlp.{name}.weight"), raw);
    }
    fixtures::write(&model.join("model.safetensors"), &tensors);
    let config = r#"{"model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_hidden_layers": 1,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": null}"#;
    std::fs::write(model.join("config.json"), config).expect("written");
    std::fs::write(model.join("tokenizer.json"), "{}").expect("written");
    ok(run(
        "expand {}/model {}/mixture/ --to mixture --n-experts 4",
        &folder,
    ));
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name));
        text.unwrap_or_else(|_| panic!("no {name}"))
    };
    let said: serde_json::Value = serde_json::from_str(&read("mixture/config.json")).expect("JSON");
    assert_eq!(said["model_type"], "mixtral");
    assert_eq!(said["num_local_experts"], 4);
    assert_eq!(read("mixture/tokenizer.json"), "{}");
    let card = read("mixture/README.md");
    for words in [
        "A conversion, made with vlmerge",
        "| converted |",
        "expand: { to: mixture, n_experts: 4",
    ] {
        assert!(card.contains(words), "{words}: {card}");
    }
    assert!(!card.contains("- merge"), "{card}");
    let said = ok(run(
        "convert {}/mixture {}/dense.safetensors --experts dense",
        &folder,
    ));
    assert!(
        said.stderr
            .contains("config.json still says what the model was"),
        "{}",
        said.stderr
    );
    assert!(!folder.path().join("config.json").exists());
    ok(run("convert {}/mixture {}/dense/ --experts dense", &folder));
    assert!(read("dense/config.json").contains("\"mistral\""));
    // A mixture that no configuration can describe leaves no file behind.
    let unknown = read("mixture/config.json").replace("\"mixtral\"", "\"strange\"");
    std::fs::write(folder.path().join("mixture/config.json"), unknown).expect("written");
    let said = run("convert {}/mixture {}/other/ --experts dense", &folder);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains(
            "mixture/config.json: no architecture is known that is `strange` without mixtures"
        ),
        "{}",
        said.stderr
    );
    assert!(!folder.path().join("other").exists());
}

#[test]
fn experts_of_quantized_models_are_made_of_numbers_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    for line in [
        "convert fixtures/quantized/fp8_a {}/out.safetensors --experts dense",
        "expand fixtures/quantized/fp8_a {}/out.safetensors --to mixture --n-experts 2",
    ] {
        let said = run(line, &folder);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        for words in [
            "the model is quantized",
            "holds codes",
            "convert --dequantize",
        ] {
            assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
        }
    }
    // As numbers they may; this model has no experts.
    let line = "convert fixtures/quantized/fp8_a {}/out.safetensors --experts dense --dequantize";
    let said = run(line, &folder);
    assert!(
        said.stderr.contains("no mixture of experts"),
        "{}",
        said.stderr
    );
}
