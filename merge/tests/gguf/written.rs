//! Models as GGUF files, in one piece or in parts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use merge::execute::{RunOptions, execute};
use merge::gguf::{GgufExport, GgufType};
use merge::io::{OpenOptions, OutputContainer, WriteOptions, Writer, open};
use merge::progress::Silent;
use merge::{Checkpoint, DType, Error, ExportFault, GgufFault, TensorInfo, WriteFault};

use super::floats;

pub(super) const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 6, "num_hidden_layers": 1, "hidden_size": 64,
    "intermediate_size": 96, "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu"}"#;

pub(super) fn model(folder: &Path, config: &str) -> Arc<Checkpoint> {
    let sizes: [(&str, &[usize]); 5] = [
        ("model.embed_tokens.weight", &[6, 64]),
        ("model.norm.weight", &[64]),
        ("model.layers.0.self_attn.q_proj.weight", &[64, 64]),
        ("model.layers.0.self_attn.k_proj.weight", &[32, 64]),
        ("model.layers.0.mlp.down_proj.weight", &[64, 96]),
    ];
    std::fs::create_dir_all(folder).expect("a folder");
    let tensors = sizes.map(|(name, shape)| {
        let info = TensorInfo {
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        (name.to_owned(), info)
    });
    let options = WriteOptions::new(folder.join("model.safetensors"));
    let writer = Writer::create(&tensors, &BTreeMap::new(), &options).expect("it can be written");
    for (index, (_, info)) in tensors.iter().enumerate() {
        let value = |at: usize| ((index * 31 + at * 7) % 101) as f32 * 0.37 - 18.0;
        let bytes = floats((0..info.n_elements()).map(value));
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&BTreeMap::new()).expect("in place");
    std::fs::write(folder.join("config.json"), config).expect("written");
    Arc::new(open(folder, &OpenOptions::default()).expect("it opens"))
}

pub(super) fn export(kind: GgufType) -> GgufExport {
    GgufExport {
        kind,
        with_tokenizer: false,
    }
}

#[test]
fn a_model_that_is_written_reads_as_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = model(&folder.path().join("hf"), CONFIG);
    for (kind, tolerance) in [
        (GgufType::F32, 0.0),
        (GgufType::F16, 0.01),
        (GgufType::Q8_0, 0.08),
    ] {
        let out = folder.path().join(format!("{kind}.gguf"));
        let plan = export(kind).plan(Arc::clone(&source)).expect("a plan");
        execute(
            &plan,
            &WriteOptions::new(&out),
            &RunOptions::default(),
            &Silent,
        )
        .expect("written");
        let found = open(&out, &OpenOptions::default()).expect("it opens");
        assert!(
            found
                .info()
                .metadata
                .values()
                .any(|text| text.contains("to: gguf"))
        );
        for (name, info) in source.tensors() {
            let own = found.require(name).expect("the name of Hugging Face");
            assert_eq!(own.shape, info.shape, "{name}");
            let numbers = |of: &Checkpoint, dtype| {
                let mut values = vec![0.0; info.n_elements()];
                let bytes = of.read_all(name).expect("numbers");
                merge::decode_f32(name, dtype, &bytes, &mut values).expect("numbers");
                values
            };
            let pairs = numbers(&source, DType::F32)
                .into_iter()
                .zip(numbers(&found, own.dtype));
            for (a, b) in pairs {
                assert!((a - b).abs() <= tolerance, "{kind} {name}: {a} {b}");
            }
        }
    }
}

#[test]
fn what_a_gguf_file_cannot_say_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = |name: &str, config: &str| {
        let source = model(&folder.path().join(name), config);
        match export(GgufType::Keep).plan(source) {
            Ok(_) => panic!("{name} was planned"),
            Err(Error::Export(fault)) => *fault,
            Err(other) => panic!("{name}: {other}"),
        }
    };
    let with = |from: &str, to: &str| CONFIG.replace(from, to);
    let scaled = with(
        "\"hidden_act\"",
        "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}, \"hidden_act\"",
    );
    for (name, config) in [
        ("dynamic", scaled),
        ("activation", with("silu", "relu")),
        (
            "heads",
            with("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
        ),
        ("size", with("\"intermediate_size\": 96,", "")),
    ] {
        let fault = plan(name, &config);
        assert!(
            matches!(fault, ExportFault::Setting { .. }),
            "{name}: {fault}"
        );
    }
    let fault = plan("family", &with("llama", "hyena"));
    assert!(matches!(fault, ExportFault::Architecture { model_type, .. } if model_type == "hyena"));
    // The tokenizer is asked for, and is not there.
    let source = model(&folder.path().join("plain"), CONFIG);
    let with_tokenizer = GgufExport {
        kind: GgufType::Keep,
        with_tokenizer: true,
    };
    let fault = with_tokenizer.plan(source).err().expect("refused");
    assert!(fault.to_string().contains("tokenizer"), "{fault}");
    assert!(
        fault
            .hint()
            .is_some_and(|hint| hint.contains("--no-tokenizer"))
    );
}

#[test]
fn a_gguf_file_of_a_merge_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = model(&folder.path().join("hf"), CONFIG);
    let layout = merge::layouts::detect(&source).expect("a layout");
    let plan = merge::convert::Conversion::default()
        .plan(source, layout.as_ref())
        .expect("a plan");
    let out = folder.path().join("out.gguf");
    let fault = execute(
        &plan,
        &WriteOptions::new(&out),
        &RunOptions::default(),
        &Silent,
    );
    let fault = fault.expect_err("refused");
    assert!(
        matches!(fault, Error::Write(WriteFault::GgufWithoutSettings { .. })),
        "{fault}"
    );
    assert!(!out.exists());
}

#[test]
fn a_model_in_parts_is_whole_again_and_foreign_parts_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = model(&folder.path().join("hf"), CONFIG);
    let write = |name: &str, kind, max_shard_bytes| {
        let plan = export(kind).plan(Arc::clone(&source)).expect("a plan");
        let options = WriteOptions {
            max_shard_bytes: Some(max_shard_bytes),
            force: true,
            ..WriteOptions::new(folder.path().join(name))
        };
        execute(&plan, &options, &RunOptions::default(), &Silent)
    };
    let files = write("m.gguf", GgufType::F32, 25_000)
        .expect("written")
        .files;
    let names: Vec<_> = files.iter().filter_map(|path| path.file_name()).collect();
    assert_eq!(
        names,
        [
            "m-00001-of-00003.gguf",
            "m-00002-of-00003.gguf",
            "m-00003-of-00003.gguf"
        ]
    );
    assert!(!folder.path().join("m.gguf.index.json").exists());
    for path in &files {
        let found = open(path, &OpenOptions::default()).expect("it opens");
        assert_eq!(found.info().files.len(), 3);
        assert!(
            !found.info().metadata.is_empty(),
            "the first part has the record"
        );
        for (name, _) in source.tensors() {
            let own = found.read_all(name).expect("numbers");
            assert!(own == source.read_all(name).expect("numbers"), "{name}");
        }
    }
    // Of as many parts, but not of as many tensors: a file of another model.
    let kept = std::fs::read(&files[1]).expect("read");
    let mut changed = kept.clone();
    let key = b"split.tensors.count";
    let at = kept
        .windows(key.len())
        .position(|part| part == key)
        .expect("the entry");
    changed[at + key.len() + 4] += 1;
    std::fs::write(&files[1], &changed).expect("written");
    for (opened, blamed) in [(0, 1), (1, 0), (2, 1)] {
        let path = &files[opened];
        let fault = open(path, &OpenOptions::default()).err().expect("refused");
        let Error::Gguf(fault) = fault else {
            panic!("{fault}")
        };
        assert!(
            matches!(&*fault, GgufFault::PartRecord { path, key: "split.tensors.count", .. } if path == &files[blamed]),
            "{fault}"
        );
    }
    std::fs::remove_file(&files[1]).expect("removed");
    let fault = open(&files[0], &OpenOptions::default())
        .err()
        .expect("refused");
    assert!(
        fault.to_string().contains("part 2 of 3 is not there"),
        "{fault}"
    );
    // Readers look for the ending.
    let options = WriteOptions {
        container: Some(OutputContainer::Gguf),
        max_shard_bytes: Some(25_000),
        ..WriteOptions::new(folder.path().join("m.model"))
    };
    let plan = export(GgufType::F32)
        .plan(Arc::clone(&source))
        .expect("a plan");
    let fault = execute(&plan, &options, &RunOptions::default(), &Silent).expect_err("refused");
    assert!(
        matches!(fault, Error::Write(WriteFault::CannotShard { .. })),
        "{fault}"
    );
}

#[test]
fn settings_that_programs_take_for_granted_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = |name: &str, config: &str| {
        let source = model(&folder.path().join(name), config);
        export(GgufType::Keep).plan(source).map(drop)
    };
    let with = |kind: &str, more: &str| {
        let config = CONFIG.replace(
            "\"model_type\": \"llama\"",
            &format!("\"model_type\": \"{kind}\", {more}"),
        );
        config.replace(
            "silu",
            if kind.starts_with("gemma") {
                "gelu_pytorch_tanh"
            } else {
                "silu"
            },
        )
    };
    let gemma = |more: &str| {
        with(
            "gemma3_text",
            &format!("\"sliding_window\": 8, \"query_pre_attn_scalar\": 16, {more} \"a\": 0"),
        )
    };
    for (name, config) in [
        ("gemma", gemma("")),
        (
            "gemma-layers",
            gemma(r#""layer_types": ["sliding_attention"],"#),
        ),
        ("smollm", with("smollm3", r#""no_rope_layers": [1]"#)),
        ("granite", with("granite", r#""attention_multiplier": 0.5"#)),
    ] {
        plan(name, &config).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
    // Divisors for each pair are read; the tensors are those of another architecture.
    let ones = "[1, 1, 1, 1, 1, 1, 1, 1]";
    let long = format!(
        r#""rope_scaling": {{"type": "su", "long_factor": {ones}, "short_factor": {ones}}}"#
    );
    let fault = plan("phi", &with("phi3", &long)).expect_err("refused");
    assert!(
        matches!(&fault, Error::Export(fault) if matches!(**fault, ExportFault::UnknownTensor { .. })),
        "{fault}"
    );
    for (name, key, config) in [
        (
            "scale",
            "query_pre_attn_scalar",
            gemma("").replace("scalar\": 16", "scalar\": 17"),
        ),
        (
            "layers",
            "layer_types",
            gemma(r#""layer_types": ["full_attention"],"#),
        ),
        (
            "every",
            "sliding_window_pattern",
            gemma(r#""sliding_window_pattern": 5,"#),
        ),
        (
            "positions",
            "no_rope_layers",
            with("smollm3", r#""no_rope_layers": [0]"#),
        ),
        (
            "interval",
            "no_rope_layer_interval",
            with("smollm3", r#""no_rope_layer_interval": 3"#),
        ),
        (
            "factor",
            "attention_multiplier",
            with("granite", r#""attention_multiplier": 0"#),
        ),
        (
            "short",
            "rope_scaling",
            with(
                "phi3",
                r#""rope_scaling": {"type": "su", "long_factor": [1], "short_factor": [1]}"#,
            ),
        ),
        (
            "share",
            "rope_parameters",
            with(
                "llama",
                r#""rope_parameters": {"partial_rotary_factor": 0.5}"#,
            ),
        ),
    ] {
        let fault = plan(name, &config).expect_err("refused");
        assert!(
            matches!(&fault, Error::Export(fault) if matches!(&**fault, ExportFault::Setting { key: own, .. } if own == key)),
            "{name}: {fault}"
        );
    }
}
