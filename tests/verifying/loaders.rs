//! Without a recipe: numbers, codes, configuration, tokenizer; and exit codes.

use merge::io::OpenOptions;
use serde_json::json;

use super::{Folder, model, places};

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
