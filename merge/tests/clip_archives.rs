//! Archives of TorchScript in the form of those that OpenAI published: CLIPs that tell more than their weights.

use std::path::Path;
use std::sync::Arc;

use merge::convert::ClipTarget;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::layouts::{self, ClipActivation, ClipLibrary, ClipSpelling, ModelRecord, PooledText};
use merge::progress::Silent;
use merge::{Checkpoint, DType, MergePlan, MergeRecipe};

use crate::clip::{converted, opened};

/// Two heads in the image tower and one in the text tower, of width 64 each; matrices in half precision, norms in
/// single.
const ARCHIVE: &str = "torchscript/openai.pt";

const BUFFERS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

fn assert_facts(record: &ModelRecord, of: &str) {
    assert_eq!(
        (record.image_heads, record.text_heads),
        (Some(2), Some(1)),
        "{of}"
    );
    let facts = record.clip.expect("facts");
    let quick = Some(ClipActivation::QuickGelu);
    assert_eq!(
        (facts.image_activation, facts.text_activation),
        (quick, quick)
    );
    assert_eq!(
        (facts.image_epsilon, facts.text_epsilon),
        (Some(1e-5), Some(1e-5))
    );
    assert_eq!(facts.is_causal, Some(true));
    assert_eq!(facts.pooled, Some(PooledText::Largest));
    assert_eq!(facts.library, Some(ClipLibrary::OpenClip));
}

/// Whether a checkpoint has every weight of the archive, bit for bit, under open_clip's names.
fn assert_same(found: Checkpoint, archive: &Checkpoint) {
    let to = ClipSpelling::open_clip(false);
    let found = layouts::clip::respelled(Arc::new(found), to).expect("a view");
    let weights: Vec<_> = (archive.tensors())
        .filter(|(key, _)| !BUFFERS.contains(key))
        .collect();
    assert_eq!(found.tensors().count(), weights.len());
    for (key, info) in weights {
        assert_eq!(found.get(key), Some(info), "{key}");
        assert_eq!(
            found.read_all(key).ok(),
            archive.read_all(key).ok(),
            "{key}"
        );
    }
}

#[test]
fn an_archive_of_openai_tells_activation_and_heads_and_conversions_keep_them() {
    let path = fixtures::path(ARCHIVE);
    let archive = opened(&path);
    let dtype = |key: &str| archive.require(key).expect("there").dtype;
    assert_eq!(dtype("visual.conv1.weight"), DType::F16);
    assert_eq!(dtype("visual.ln_pre.weight"), DType::F32);
    let layout = layouts::detect(&archive).expect("a layout");
    assert_eq!(layout.name(), "clip/clip");
    let heads = |stack: &str| layout.dimensions().stack(stack).and_then(|of| of.n_heads);
    assert_eq!((heads("image"), heads("text")), (Some(2), Some(1)));
    let evidence = layout.evidence().join("\n");
    assert!(evidence.contains("QuickGELU"), "{evidence}");
    for to in [ClipTarget::HuggingFace, ClipTarget::OpenClip] {
        let converted = converted(&path, to);
        assert_facts(
            &ModelRecord::of(&converted).expect("a record"),
            &format!("{to:?}"),
        );
        assert_same(converted, &archive);
    }
}

#[test]
fn a_merge_of_an_archive_knows_what_the_archive_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = fixtures::path(ARCHIVE);
    let yaml = format!(
        "merge_method: linear\nmodels:\n- {{ model: {0}, parameters: {{ weight: 1.0 }} }}\n\
         - {{ model: {0}, parameters: {{ weight: 1.0 }} }}\n",
        archive.display()
    );
    let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let path = folder.path().join("merged.safetensors");
    let options = WriteOptions::new(&path);
    execute(&plan, &options, &RunOptions::default(), &Silent).expect("written");
    let merged = opened(&path);
    assert_facts(&ModelRecord::of(&merged).expect("a record"), "the merge");
    assert_same(merged, &opened(&archive));
}

#[test]
fn a_clip_with_some_of_the_buffers_is_no_archive_of_openai() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let archive = opened(&fixtures::path(ARCHIVE));
    let converted = converted(&fixtures::path(ARCHIVE), ClipTarget::OpenClip);
    let tensors = (converted.tensors())
        .map(|(key, info)| (key, info, converted.read_all(key)))
        .chain(
            [("input_resolution", &archive)]
                .map(|(key, file)| (key, file.require(key).expect("there"), file.read_all(key))),
        );
    let tensors = tensors.map(|(key, info, bytes)| {
        let dtype = match info.dtype {
            DType::F16 => safetensors::Dtype::F16,
            DType::I64 => safetensors::Dtype::I64,
            _ => safetensors::Dtype::F32,
        };
        let raw = fixtures::Raw {
            dtype,
            shape: info.shape.clone(),
            bytes: bytes.expect("it reads"),
        };
        (key.to_owned(), raw)
    });
    fixtures::write(&path, &tensors.collect());
    let file = opened(&path);
    let layout = layouts::detect(&file).expect("a layout");
    let heads = |stack: &str| layout.dimensions().stack(stack).and_then(|of| of.n_heads);
    assert_eq!((heads("image"), heads("text")), (None, None));
}
