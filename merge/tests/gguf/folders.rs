//! GGUF files as model folders: the configuration that their metadata give.

use std::path::Path;
use std::sync::Arc;

use merge::beside::Content;
use merge::execute::{RunOptions, execute};
use merge::gguf::{GgufImport, GgufType};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::progress::Silent;
use merge::{Error, GgufFault};

use super::written::{CONFIG, export, model};
use super::{F32, File, entry, floats, number, string, tensor};

/// The config.json of the folder that a file becomes.
fn imported(file: &Path) -> merge::Result<serde_json::Value> {
    let source = Arc::new(open(file, &OpenOptions::default())?);
    let plan = GgufImport::default().plan(source)?;
    let files = &plan.beside().files;
    let config = files.iter().find(|file| file.name == "config.json");
    let Content::Text(text) = &config.expect("a configuration").content else {
        panic!("it is made of the metadata");
    };
    Ok(serde_json::from_str(text).expect("JSON"))
}

/// Every setting of `config` that programs read comes back from a file.
#[test]
fn a_file_becomes_a_folder_with_the_settings_that_it_was_made_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let scaling = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 100}"#;
    let with = |scaling: &str| {
        CONFIG.replace(
            "\"hidden_act\"",
            &format!("\"rope_scaling\": {scaling}, \"hidden_act\""),
        )
    };
    for (name, config) in [
        ("plain", CONFIG.to_owned()),
        ("llama3", with(scaling)),
        ("linear", with(r#"{"rope_type": "linear", "factor": 4.0}"#)),
        (
            "yarn",
            with(r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#),
        ),
    ] {
        let source = model(&folder.path().join(name), &config);
        let plan = export(GgufType::F32).plan(source).expect("a plan");
        let out = folder.path().join(format!("{name}.gguf"));
        execute(
            &plan,
            &WriteOptions::new(&out),
            &RunOptions::default(),
            &Silent,
        )
        .expect("written");
        let found = imported(&out).expect("a plan");
        let given: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        for (key, value) in given.as_object().expect("settings") {
            assert_eq!(&found[key], value, "{name}: {key}");
        }
        assert_eq!(found["head_dim"], 16);
        assert_eq!(found["tie_word_embeddings"], true, "there is no head");
        assert_eq!(found["torch_dtype"], "float32");
        assert_eq!(found["attention_bias"], false);
    }
}

#[test]
fn metadata_that_no_configuration_says_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = || {
        vec![
            string("general.architecture", "llama"),
            number("llama.attention.head_count", 2),
            number("llama.embedding_length", 8),
            number("llama.block_count", 1),
            number("llama.feed_forward_length", 4),
            number("llama.context_length", 16),
            entry(
                "llama.attention.layer_norm_rms_epsilon",
                6,
                &1e-5f32.to_le_bytes(),
            ),
        ]
    };
    let embeddings = || vec![tensor("token_embd.weight", &[8, 2], F32, 0)];
    let written = |name: &str, file: File| {
        let path = folder.path().join(name);
        std::fs::write(&path, file.bytes()).expect("written");
        imported(&path)
    };
    let plain = written("plain.gguf", File::new(base(), embeddings(), 64)).expect("a plan");
    assert_eq!(
        (&plain["vocab_size"], &plain["num_key_value_heads"]),
        (&2.into(), &2.into())
    );
    let unsaid = [
        ("type.gguf", string("llama.rope.scaling.type", "longrope")),
        ("width.gguf", number("llama.rope.dimension_count", 2)),
        ("values.gguf", number("llama.attention.value_length", 8)),
        ("legacy.gguf", number("llama.rope.scale_linear", 2)),
    ];
    for (name, more) in unsaid {
        let entries = [base(), vec![more]].concat();
        let fault = written(name, File::new(entries, embeddings(), 64)).expect_err("refused");
        assert!(
            matches!(&fault, Error::Gguf(fault) if matches!(**fault, GgufFault::Unsaid { .. })),
            "{name}: {fault}"
        );
        assert!(
            fault
                .hint()
                .is_some_and(|hint| hint.contains(".safetensors"))
        );
    }
    let missing = File::new(base()[..6].to_vec(), embeddings(), 64);
    let fault = written("epsilon.gguf", missing).expect_err("refused");
    assert!(
        fault.to_string().contains("layer_norm_rms_epsilon"),
        "{fault}"
    );
    // Divisors of no Llama 3: the largest is 3, and no number of tokens gives the others.
    let tensors = [
        embeddings(),
        vec![tensor("rope_freqs.weight", &[2], F32, 64)],
    ]
    .concat();
    let mut divided = File::new(base(), tensors, 72);
    divided.data[64..].copy_from_slice(&floats([3.0, 1.0]));
    let fault = written("divided.gguf", divided).expect_err("refused");
    assert!(fault.to_string().contains("rope_freqs.weight"), "{fault}");
    let other = File::new(vec![string("general.architecture", "x")], embeddings(), 64);
    let fault = written("other.gguf", other).expect_err("refused");
    assert!(
        matches!(&fault, Error::Gguf(fault) if matches!(**fault, GgufFault::NoSuchConfig { .. })),
        "{fault}"
    );
}
