//! Facts that the weights of a run do not tell are written into the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::models::{Config, Multiway, Overrides, ShallowAttention};
use merge::convert::{Conversion, Expansion};
use merge::execute::{RunOptions, in_memory};
use merge::io::{OpenOptions, WriteOptions, Writer};
use merge::layouts::{self, Form};
use merge::progress::Silent;
use merge::{Checkpoint, Error, TensorInfo};
use train::collective::Alone;
use train::run::{Trainer, Where};

use crate::fixture::recipe;

/// Sizes that no rule would guess: three blocks, heads of 12 channels, fusion from block 1.
const SYNTH: &str = "init={synth: {size: tiny, blocks: 3, width: 24, attention_heads: 2, \
                     fusion_start: 1, image_size: 32, text_len: 12, text_table_len: 20, \
                     vocabulary: 101}}";

fn config(checkpoint: &Arc<Checkpoint>, overrides: &Overrides) -> evaluate::Result<Config> {
    let checkpoint = Arc::clone(checkpoint);
    let prepared = Multiway::prepare(checkpoint, overrides, &Device::Cpu, DType::F32);
    prepared.map(|(config, _)| config)
}

fn open(path: &Path) -> Arc<Checkpoint> {
    Arc::new(merge::io::open(path, &OpenOptions::default()).expect("it opens"))
}

/// The weights of a run, which stand under what `model` says.
fn trained(folder: &Path) -> (Arc<Checkpoint>, Config) {
    let settings = [SYNTH, "model={}", "length={steps: 1}"];
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: retrieval }]", &settings);
    let place = Where {
        folder,
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    let mut trainer = Trainer::open(recipe, place).expect("no setting of the model is missing");
    trainer.run().expect("it runs");
    let started_from = trainer.start().weights.checkpoint();
    let config = config(started_from, &Overrides::default()).expect("known");
    (open(&folder.join("model.safetensors")), config)
}

#[test]
fn trained_weights_say_of_their_model_what_tensors_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (checkpoint, expected) = trained(folder.path());
    assert_eq!((expected.n_heads, expected.fusion_start), (2, 1));
    let found = config(&checkpoint, &Overrides::default()).expect("known");
    assert_eq!(found, expected);
    // A setting may say the same.
    let said = Overrides {
        n_heads: Some(2),
        fusion_start: Some(1),
        text_table_len: Some(20),
        ..Overrides::default()
    };
    assert_eq!(config(&checkpoint, &said).expect("known"), expected);
    let run = RunOptions::default();
    // Files made of the weights have it, too.
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let conversion = Conversion {
        image_size: Some(64),
        ..Conversion::default()
    };
    let expansion = Expansion::to(Form::AllSpecific);
    let plans = [
        conversion.plan(Arc::clone(&checkpoint), layout.as_ref()),
        expansion.plan(Arc::clone(&checkpoint), layout.as_ref()),
    ];
    for (plan, image_size) in plans.into_iter().zip([64, 32]) {
        let made = in_memory(&plan.expect("a plan"), &run, &Silent).expect("made");
        let found = config(&Arc::new(made), &Overrides::default()).expect("known");
        let sizes = (found.n_heads, found.fusion_start, found.image_size);
        assert_eq!(sizes, (2, 1, image_size));
    }
}

/// The error for a setting.
fn refused(checkpoint: &Arc<Checkpoint>, overrides: &Overrides, expected: &str) {
    let found = config(checkpoint, overrides);
    let said = found.expect_err(expected).to_string();
    assert!(said.contains(expected), "{expected}: {said}");
}

#[test]
fn a_setting_that_contradicts_the_record_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (checkpoint, _) = trained(folder.path());
    for start in [0, 2, 3, 99] {
        let overrides = Overrides {
            fusion_start: Some(start),
            ..Overrides::default()
        };
        let expected = format!("`fusion_start` is 1 by the file's own record, but {start} was");
        refused(&checkpoint, &overrides, &expected);
    }
    let record = r#"{"family": "multiway", "heads": 2, "fusion_start": 1, "text_table_len": 20,
                     "shallow_attention": "per_modality"}"#;
    let said = rewritten(&checkpoint, record, &folder.path().join("said.safetensors"));
    let joint = Overrides {
        shallow_attention: Some(ShallowAttention::Joint),
        ..Overrides::default()
    };
    refused(&said, &joint, "`shallow_attention` is PerModality by");
    // A record that does not say how leaves the choice.
    let chosen = config(&checkpoint, &joint)
        .expect("known")
        .shallow_attention;
    assert_eq!(chosen, ShallowAttention::Joint);
}

#[test]
fn a_fusion_start_is_one_that_the_model_can_have() {
    let folder = tempfile::tempdir().expect("a folder");
    let (checkpoint, _) = trained(folder.path());
    let record = r#"{"family": "multiway", "heads": 2, "text_table_len": 20}"#;
    let untold = rewritten(
        &checkpoint,
        record,
        &folder.path().join("untold.safetensors"),
    );
    let of = |start| Overrides {
        fusion_start: Some(start),
        ..Overrides::default()
    };
    // As many as there are blocks: none joins text and image.
    for start in [0, 2, 3] {
        let found = config(&untold, &of(start)).expect("known").fusion_start;
        assert_eq!(found, start);
    }
    refused(
        &untold,
        &of(4),
        "`fusion_start` is 4, but there are 3 blocks",
    );
    // Experts tell the block, with a record or without.
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let plan = Expansion::to(Form::AllSpecific).plan(Arc::clone(&checkpoint), layout.as_ref());
    let specific = in_memory(&plan.expect("a plan"), &RunOptions::default(), &Silent);
    let path = folder.path().join("specific.safetensors");
    let specific = rewritten(&specific.expect("made"), record, &path);
    assert_eq!(config(&specific, &of(1)).expect("known").fusion_start, 1);
    for start in [0, 2] {
        let expected = format!(
            "`fusion_start` is 1, the first block with a vision_language expert, but {start}"
        );
        refused(&specific, &of(start), &expected);
    }
}

/// The same tensors with other metadata.
fn rewritten(from: &Checkpoint, record: &str, to: &Path) -> Arc<Checkpoint> {
    let infos: Vec<(String, TensorInfo)> = (from.tensors())
        .map(|(key, info)| (key.to_owned(), info.clone()))
        .collect();
    let metadata = BTreeMap::from([("vlmerge.model".to_owned(), record.to_owned())]);
    let writer = Writer::create(&infos, &metadata, &WriteOptions::new(to)).expect("created");
    for (index, (key, _)) in infos.iter().enumerate() {
        let bytes = from.read_all(key).expect("it reads");
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&metadata).expect("finished");
    open(to)
}

#[test]
fn a_record_that_tensors_contradict_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (checkpoint, _) = trained(folder.path());
    let layout = layouts::detect(&checkpoint).expect("a layout");
    let plan = Expansion::to(Form::AllSpecific).plan(Arc::clone(&checkpoint), layout.as_ref());
    let specific = in_memory(&plan.expect("a plan"), &RunOptions::default(), &Silent);
    let specific = specific.expect("made");
    for (source, record, expected) in [
        (checkpoint.as_ref(), r#"{"heads": 3}"#, "heads"),
        (&specific, r#"{"fusion_start": 2}"#, "fusion_start"),
        (&specific, r#"{"text_table_len": 19}"#, "text_table_len"),
    ] {
        let file = folder.path().join(format!("{expected}.safetensors"));
        let rewritten = rewritten(source, record, &file);
        match layouts::detect(&rewritten).err() {
            Some(Error::RecordContradicted { path, what, .. }) => {
                assert_eq!((path, what), (file, expected));
            }
            other => panic!("{record}: {other:?}"),
        }
    }
    let bad = [
        "{",
        r#"{"layers": 3}"#,
        r#"{"heads": -1}"#,
        // Facts of another family.
        r#"{"family": "multiway", "image_heads": 2}"#,
        r#"{"family": "zerovl", "fusion_start": 2}"#,
    ];
    for (index, record) in bad.iter().enumerate() {
        let file = folder.path().join(format!("bad{index}.safetensors"));
        let error = layouts::detect(&rewritten(&checkpoint, record, &file)).err();
        assert!(
            matches!(error, Some(Error::BadModelRecord { .. })),
            "{error:?}"
        );
    }
}
