//! Mixtures of dense models, as a user makes them.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Said, ok, run};

const WIDTH: usize = 4;
const UNITS: usize = 6;
const N_TOKENS: usize = 5;

/// A number for each element of a tensor of a model.
fn values(model: usize, name: &str, n: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(model + 1, |sum, b| sum * 31 % 9973 + usize::from(b));
    (0..n)
        .map(|i| ((seed * 37 + i * 101) % 997) as f32 / 997.0 - 0.5)
        .collect()
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![N_TOKENS, WIDTH],
        ),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
        ("lm_head.weight".to_owned(), vec![N_TOKENS, WIDTH]),
    ];
    for layer in 0..2 {
        for (part, shape) in [
            ("input_layernorm.weight", vec![WIDTH]),
            ("post_attention_layernorm.weight", vec![WIDTH]),
            ("self_attn.q_proj.weight", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj.weight", vec![WIDTH, WIDTH]),
            ("self_attn.v_proj.weight", vec![WIDTH, WIDTH]),
            ("self_attn.o_proj.weight", vec![WIDTH, WIDTH]),
            ("mlp.gate_proj.weight", vec![UNITS, WIDTH]),
            ("mlp.up_proj.weight", vec![UNITS, WIDTH]),
            ("mlp.down_proj.weight", vec![WIDTH, UNITS]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}"), shape));
        }
    }
    shapes
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": UNITS,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": N_TOKENS, "torch_dtype": "float32",
    })
}

/// A model with `more` tensors beside those of a Llama.
fn model(folder: &Path, number: usize, config: &Value, more: &[(&str, Vec<usize>)]) {
    std::fs::create_dir_all(folder).expect("a folder");
    let more = more
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), shape.clone()));
    let all: Vec<_> = shapes().into_iter().chain(more).collect();
    let bytes: Vec<Vec<u8>> = (all.iter())
        .map(|(name, shape)| {
            let values = values(number, name, shape.iter().product());
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = all.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, None).expect("a file");
    std::fs::write(folder.join("model.safetensors"), file).expect("written");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let vocabulary = json!({ "<s>": 0, "cat": 1, "code": 2, "rose": 3, "?": 4 });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [{ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "?" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    std::fs::write(
        folder.join("tokenizer_config.json"),
        json!({ "bos_token": "<s>" }).to_string(),
    )
    .expect("written");
}

fn models() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for number in 0..3 {
        model(
            &folder.path().join(format!("m{number}")),
            number,
            &config(),
            &[],
        );
    }
    folder
}

fn recipe(folder: &TempDir, text: &str) {
    let text = text.replace("{}", folder.path().to_str().expect("UTF-8"));
    std::fs::write(folder.path().join("moe.yaml"), text).expect("written");
}

const RECIPE: &str = "
base_model: '{}/m0'
gate_mode: cheap_embed
experts:
- source_model: '{}/m1'
  positive_prompts: [cat cat, code]
  negative_prompts: [rose]
- source_model: '{}/m2'
  positive_prompts: [rose]
  residual_scale: 0.5
";

fn read(folder: &TempDir, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(folder.path().join("out/model.safetensors")).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a header");
    let tensor = file.tensor(name).expect(name);
    let values = tensor
        .data()
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
    (tensor.shape().to_vec(), values.collect())
}

fn moe(folder: &TempDir, more: &str) -> Said {
    run(&format!("moe {{}}/moe.yaml --out {{}}/out/ {more}"), folder)
}

#[test]
fn experts_come_of_their_models_and_all_else_of_the_base() {
    let folder = models();
    recipe(&folder, RECIPE);
    ok(moe(&folder, ""));
    let of = |model: usize, name: &str, n: usize| values(model, name, n);
    let expert = |layer: usize, expert: usize, part: &str| {
        read(
            &folder,
            &format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"),
        )
        .1
    };
    for layer in 0..2 {
        for (part, dense) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
            let name = format!("model.layers.{layer}.mlp.{dense}.weight");
            assert_eq!(
                expert(layer, 0, part),
                of(1, &name, UNITS * WIDTH),
                "{name}"
            );
            let factor = if part == "w2" { 0.5 } else { 1.0 };
            let scaled: Vec<f32> = of(2, &name, UNITS * WIDTH)
                .iter()
                .map(|v| v * factor)
                .collect();
            assert_eq!(expert(layer, 1, part), scaled, "{name}");
        }
    }
    assert_eq!(
        read(&folder, "lm_head.weight").1,
        of(0, "lm_head.weight", N_TOKENS * WIDTH)
    );
    // The direction of <s> cat cat <s> code less that of <s> rose.
    let embeddings = of(0, "model.embed_tokens.weight", N_TOKENS * WIDTH);
    let sum = |ids: &[usize]| {
        let sum: Vec<f64> = (0..WIDTH)
            .map(|i| {
                ids.iter()
                    .map(|id| f64::from(embeddings[id * WIDTH + i]))
                    .sum()
            })
            .collect();
        let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        sum.iter().map(|v| v / length).collect::<Vec<f64>>()
    };
    let (positive, negative) = (sum(&[0, 1, 1, 0, 2]), sum(&[0, 3]));
    let own: Vec<f64> = positive.iter().zip(&negative).map(|(p, n)| p - n).collect();
    let length = own.iter().map(|v| v * v).sum::<f64>().sqrt();
    let (shape, gate) = read(&folder, "model.layers.1.block_sparse_moe.gate.weight");
    assert_eq!(shape, [2, WIDTH]);
    for (index, value) in own.iter().map(|v| v / length).chain(negative).enumerate() {
        assert!((f64::from(gate[index]) - value).abs() < 1e-6, "{index}");
    }
    let config = std::fs::read_to_string(folder.path().join("out/config.json")).expect("a file");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["model_type"], "mixtral");
    assert_eq!(config["num_local_experts"], 2);
    assert_eq!(config["vocab_size"], N_TOKENS);
    let card = std::fs::read_to_string(folder.path().join("out/README.md")).expect("a card");
    for part in [
        "A mixture of experts",
        "| expert |",
        "gate_mode: cheap_embed",
        "source_model: m1",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(
        !card.contains(folder.path().to_str().expect("UTF-8")),
        "{card}"
    );
    assert!(folder.path().join("out/tokenizer.json").exists());
    ok(run("inspect {}/out", &folder));
}

#[test]
fn drawn_gates_follow_the_seed_and_a_dry_run_writes_nothing() {
    let folder = models();
    recipe(&folder, &RECIPE.replace("cheap_embed", "random"));
    let said = ok(moe(&folder, "--dry-run"));
    assert!(
        said.stdout.contains("block_sparse_moe.gate.weight"),
        "{}",
        said.stdout
    );
    assert!(!folder.path().join("out").exists());
    let name = "model.layers.0.block_sparse_moe.gate.weight";
    let gate = |seed: &str| {
        ok(moe(&folder, &format!("--force --seed {seed}")));
        read(&folder, name).1
    };
    assert_eq!(gate("1"), gate("1"));
    assert_ne!(gate("1"), gate("2"));
}

#[test]
fn a_shared_expert_has_its_place_and_missing_biases_are_zero() {
    let folder = models();
    let shared = "shared_experts:\n- source_model: '{}/m0'\n  positive_prompts: [code]\n";
    recipe(&folder, &format!("{RECIPE}{shared}architecture: qwen\n"));
    ok(moe(&folder, ""));
    assert_eq!(
        read(&folder, "model.layers.0.mlp.shared_expert.up_proj.weight").1,
        values(0, "model.layers.0.mlp.up_proj.weight", UNITS * WIDTH)
    );
    assert_eq!(
        read(&folder, "model.layers.0.mlp.shared_expert_gate.weight").0,
        [1, WIDTH]
    );
    assert_eq!(
        read(&folder, "model.layers.1.self_attn.k_proj.bias"),
        (vec![WIDTH], vec![0.0; WIDTH])
    );
    let without = shared
        .lines()
        .take(2)
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    recipe(&folder, &format!("{RECIPE}{without}"));
    ok(moe(&folder, "--force"));
    let config = std::fs::read_to_string(folder.path().join("out/config.json")).expect("a file");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(
        (&config["model_type"], &config["n_shared_experts"]),
        (&json!("deepseek"), &json!(1))
    );
    read(
        &folder,
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    );
}

#[test]
fn what_would_be_another_model_is_refused_and_nothing_is_left() {
    let odd = |change: &dyn Fn(&mut Value), more: &[(&str, Vec<usize>)], recipe_of: &str| {
        let folder = models();
        let mut config = config();
        change(&mut config);
        model(&folder.path().join("m2"), 2, &config, more);
        recipe(&folder, recipe_of);
        let said = moe(&folder, "");
        assert_ne!(said.code, Some(0), "{}", said.stdout);
        assert!(!folder.path().join("out").exists());
        said.stderr
    };
    let of_base = RECIPE.replace("'{}/m0'", "'{}/m2'");
    let same = |_: &mut Value| {};
    for (said, expected) in [
        (
            odd(&same, &[], &RECIPE.replace("cheap_embed", "hidden")),
            "use gate_mode: cheap_embed",
        ),
        (
            odd(&same, &[], &RECIPE.replace("'{}/m2'", "'{}/m1'")),
            "--allow-same",
        ),
        (odd(&same, &[], &RECIPE.replace("'{}/m2'", "'{}/m9'")), "m9"),
        (
            odd(&|c| c["model_type"] = json!("gemma"), &[], RECIPE),
            "one architecture, not llama and gemma",
        ),
        (
            odd(&|c| c["num_hidden_layers"] = json!(3), &[], RECIPE),
            "`num_hidden_layers` is 3, and 2",
        ),
        (
            odd(
                &same,
                &[("model.layers.0.self_attn.q_proj.bias", vec![4])],
                &of_base,
            ),
            "has no place in a `mixtral`",
        ),
        (
            odd(
                &same,
                &[("model.layers.0.mlp.up_proj.bias", vec![6])],
                RECIPE,
            ),
            "up_proj.bias",
        ),
        (
            odd(&same, &[("score.weight", vec![2, 4])], &of_base),
            "`score.weight` has no place",
        ),
        (
            odd(
                &|c| drop(c.as_object_mut().expect("an object").remove("rope_theta")),
                &[],
                &of_base,
            ),
            "does not say `rope_theta`",
        ),
        (
            odd(&|c| c["auto_map"] = json!({}), &[], &of_base),
            "auto_map",
        ),
        (
            odd(
                &same,
                &[],
                &RECIPE.replace("[rose]\n  res", "[rose]\n  ros"),
            ),
            "rosidual_scale",
        ),
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn lies_of_a_configuration_and_a_tokenizer_are_refused() {
    for (key, value) in [
        ("hidden_size", 1 << 20),
        ("num_hidden_layers", 1 << 20),
        ("intermediate_size", 7),
        ("hidden_size", 0),
    ] {
        let folder = models();
        let mut config = config();
        config[key] = json!(value);
        for number in 0..3 {
            model(
                &folder.path().join(format!("m{number}")),
                number,
                &config,
                &[],
            );
        }
        recipe(&folder, &RECIPE.replace("cheap_embed", "uniform_random"));
        let said = moe(&folder, "");
        assert_eq!(said.code, Some(1), "{key}: {}", said.stderr);
        assert!(!folder.path().join("out").exists(), "{key}");
    }
    let folder = models();
    recipe(&folder, RECIPE);
    let path = folder.path().join("m0/tokenizer.json");
    let text = std::fs::read_to_string(&path)
        .expect("a file")
        .replace("\"rose\":3", "\"rose\":3000000000");
    std::fs::write(&path, text).expect("written");
    let said = moe(&folder, "");
    assert!(
        said.stderr
            .contains("token 3000000000 of a prompt is beyond the 5 rows"),
        "{}",
        said.stderr
    );
    std::fs::remove_file(&path).expect("removed");
    let said = moe(&folder, "");
    assert!(
        said.stderr.contains("tokenizer.json: is not there"),
        "{}",
        said.stderr
    );
}
