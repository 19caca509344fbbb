//! Archives of TorchScript: one that torch traced, and hostile ones made byte by byte. Their code is never looked at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::Raw;
use merge::convert::FlmTowers;
use merge::execute::{RunOptions, in_memory};
use merge::io::{OpenOptions, PickleFault, ScriptFault, ZipFault, open};
use merge::layouts::FlmTask;
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::{Checkpoint, DType, Error, TorchFault};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::torch_reader::{self as files, Pickle, archive, floats, open_pickle};

/// A CLIP that torch traced and cut to half precision, and its state dict.
const TRACED: &str = "torchscript/clip_half.pt";
const STATE_DICT: &str = "torchscript/clip_half.safetensors";

fn opened(path: &Path) -> Arc<Checkpoint> {
    Arc::new(open(path, &OpenOptions::default()).expect("it opens"))
}

#[test]
fn a_traced_model_is_read_as_its_state_dict() {
    let (traced, expected) = (
        opened(&fixtures::path(TRACED)),
        opened(&fixtures::path(STATE_DICT)),
    );
    assert_eq!(traced.info().root, "");
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint
            .tensors()
            .map(|(name, _)| name.to_owned())
            .collect()
    };
    assert_eq!(names(&traced), names(&expected));
    for (name, info) in expected.tensors() {
        assert_eq!(traced.get(name), Some(info), "{name}");
        let bytes = |checkpoint: &Checkpoint| checkpoint.read_all(name).expect("it reads");
        assert!(bytes(&traced) == bytes(&expected), "{name}");
    }
    assert_eq!(
        traced.require("visual.conv1.weight").expect("there").dtype,
        DType::F16
    );
}

// ---- towers of an FLM -------------------------------------------------------------------------

/// A RoBERTa of two layers as wide as the fixture's text part.
fn roberta(folder: &TempDir) -> Arc<Checkpoint> {
    let raw = |shape: &[usize]| Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: floats(shape.iter().product()),
    };
    let width = 8;
    let mut tensors = BTreeMap::from([
        (
            "embeddings.word_embeddings.weight".to_owned(),
            raw(&[40, width]),
        ),
        (
            "embeddings.position_embeddings.weight".to_owned(),
            raw(&[9, width]),
        ),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            raw(&[1, width]),
        ),
        ("embeddings.LayerNorm.weight".to_owned(), raw(&[width])),
        ("embeddings.LayerNorm.bias".to_owned(), raw(&[width])),
    ]);
    for layer in 0..2 {
        for (name, rows, columns) in [
            ("attention.self.query", width, Some(width)),
            ("attention.self.key", width, Some(width)),
            ("attention.self.value", width, Some(width)),
            ("attention.output.dense", width, Some(width)),
            ("attention.output.LayerNorm", width, None),
            ("intermediate.dense", 4 * width, Some(width)),
            ("output.dense", width, Some(4 * width)),
            ("output.LayerNorm", width, None),
        ] {
            let shape: Vec<usize> = std::iter::once(rows).chain(columns).collect();
            let name = format!("encoder.layer.{layer}.{name}");
            tensors.insert(format!("{name}.weight"), raw(&shape));
            tensors.insert(format!("{name}.bias"), raw(&[rows]));
        }
    }
    let path = folder.path().join("roberta.safetensors");
    fixtures::write(&path, &tensors);
    opened(&path)
}

/// The FLM that starts from a CLIP.
fn flm(clip: &Arc<Checkpoint>, folder: &TempDir) -> Checkpoint {
    let towers = FlmTowers {
        task: FlmTask::Pretrain,
        text: roberta(folder),
        image_size: None,
        n_text_blocks: Some(2),
        n_cross_blocks: Some(1),
        n_bottom: None,
        n_top: None,
        n_answers: None,
        seed: 3,
        dtype: OutputDType::Keep,
    };
    let plan = towers.plan(Arc::clone(clip)).expect("a plan");
    in_memory(&plan, &RunOptions::default(), &Silent).expect("made")
}

/// The names of the fixture's state dict in a CLIP of Hugging Face, a packed projection in three.
fn as_hugging_face_has_it(tensors: BTreeMap<String, Raw>) -> BTreeMap<String, Raw> {
    let mut own = BTreeMap::new();
    for (name, raw) in tensors {
        let (tower, rest) = match name.strip_prefix("visual.") {
            Some(rest) => ("vision_model", rest),
            None => ("text_model", name.as_str()),
        };
        let Some(within) = rest.strip_prefix("transformer.resblocks.") else {
            let rest = rest
                .replace("class_embedding", "embeddings.class_embedding")
                .replace("conv1", "embeddings.patch_embedding")
                .replace(
                    "positional_embedding",
                    "embeddings.position_embedding.weight",
                )
                .replace("ln_pre", "pre_layrnorm")
                .replace("ln_post", "post_layernorm")
                .replace("ln_final", "final_layer_norm");
            own.insert(format!("{tower}.{rest}"), raw);
            continue;
        };
        let within = within
            .replace("attn.out_proj", "self_attn.out_proj")
            .replace("ln_1", "layer_norm1")
            .replace("ln_2", "layer_norm2")
            .replace("mlp.c_fc", "mlp.fc1")
            .replace("mlp.c_proj", "mlp.fc2");
        let key = format!("{tower}.encoder.layers.{within}");
        let Some((block, end)) = key.split_once("attn.in_proj_") else {
            own.insert(key, raw);
            continue;
        };
        let mut shape = raw.shape.clone();
        shape[0] /= 3;
        let parts = raw.bytes.chunks_exact(raw.bytes.len() / 3);
        for (part, bytes) in ["q", "k", "v"].into_iter().zip(parts) {
            let raw = Raw {
                shape: shape.clone(),
                bytes: bytes.to_vec(),
                ..raw.clone()
            };
            own.insert(format!("{block}self_attn.{part}_proj.{end}"), raw);
        }
    }
    own
}

#[test]
fn an_flm_starts_from_a_traced_clip_and_from_hugging_faces_spelling_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let expected = flm(&opened(&fixtures::path(STATE_DICT)), &folder);
    let (name, source) = (
        "vit_model.visual.transformer.resblocks.1.attn.in_proj_weight",
        opened(&fixtures::path(STATE_DICT)),
    );
    // Half precision is widened, and the values stay.
    let floats_of = |checkpoint: &Checkpoint, name: &str| {
        let info = checkpoint.require(name).expect("there");
        let mut values = vec![0.0; info.n_elements()];
        let bytes = checkpoint.read_all(name).expect("it reads");
        merge::decode_f64(name, info.dtype, &bytes, &mut values).expect("floats");
        values
    };
    assert_eq!(expected.require(name).expect("there").dtype, DType::F32);
    let of_source = name.strip_prefix("vit_model.").expect("a tower");
    assert_eq!(floats_of(&expected, name), floats_of(&source, of_source));
    let whole = as_hugging_face_has_it(fixtures::tensors(&fixtures::path(STATE_DICT)));
    let mut vision = whole.clone();
    vision.retain(|name, _| name.starts_with("vision_model."));
    let bare: BTreeMap<String, Raw> = vision
        .iter()
        .map(|(name, raw)| (name.replace("vision_model.", ""), raw.clone()))
        .collect();
    let mut clips = vec![("traced", opened(&fixtures::path(TRACED)), true)];
    for (name, tensors, has_text) in [
        ("whole", &whole, true),
        ("vision", &vision, false),
        ("bare", &bare, false),
    ] {
        let path = folder.path().join(format!("{name}.safetensors"));
        fixtures::write(&path, tensors);
        clips.push((name, opened(&path), has_text));
    }
    for (clip, source, has_text) in clips {
        let found = flm(&source, &folder);
        for (name, info) in expected.tensors() {
            // An FLM keeps of CLIP's text part what nothing reads.
            let is_of_text = ["vit_model.positional_embedding", "vit_model.ln_final."]
                .iter()
                .any(|start| name.starts_with(start));
            let own = found.require(name).expect("there");
            assert_eq!(own.dtype, info.dtype, "{clip}: {name}");
            if has_text {
                assert_eq!(own.shape, info.shape, "{clip}: {name}");
            }
            if has_text || !is_of_text {
                let bytes = |checkpoint: &Checkpoint| checkpoint.read_all(name).expect("it reads");
                assert!(bytes(&found) == bytes(&expected), "{clip}: {name}");
            }
        }
        assert_eq!(
            found.tensors().count(),
            expected.tensors().count(),
            "{clip}"
        );
    }
    // A projection of another size is refused by its name.
    let mut odd = whole;
    let key = "vision_model.encoder.layers.1.self_attn.k_proj.weight";
    let raw = odd.get_mut(key).expect("there");
    raw.shape[0] -= 1;
    raw.bytes.truncate(raw.bytes.len() / 16 * 15);
    let path = folder.path().join("odd.safetensors");
    fixtures::write(&path, &odd);
    let towers = FlmTowers {
        task: FlmTask::Pretrain,
        text: roberta(&folder),
        image_size: None,
        n_text_blocks: Some(2),
        n_cross_blocks: Some(1),
        n_bottom: None,
        n_top: None,
        n_answers: None,
        seed: 3,
        dtype: OutputDType::Keep,
    };
    let error = towers.plan(opened(&path)).err().expect("refused");
    assert!(error.to_string().contains(key), "{error}");
}

// ---- archives made by hand --------------------------------------------------------------------

/// Opcodes that make an object of a class of TorchScript and put it under `slot` of the memo.
fn object(pickle: Pickle, slot: u32) -> Pickle {
    let slot = slot.to_le_bytes();
    pickle.raw(b"c__torch__.model\nModule\n)\x81r").raw(&slot)
}

/// The fault that a pickle of TorchScript has.
fn fault(pickle: Pickle) -> Error {
    open_pickle(pickle, &floats(4)).err().expect("refused")
}

#[test]
fn attributes_of_all_kinds_have_dotted_names() {
    // {"line": {"w": tensor}, "kept": [tensor], "pair": Named(tensor, 1)}, lists with their types beside them.
    let pickle = object(Pickle::default(), 0).raw(b"}(").text("line");
    let pickle = object(pickle, 1)
        .raw(b"}")
        .text("w")
        .tensor(4, 0, &[2, 2], &[2, 1])
        .raw(b"sb");
    let pickle = pickle
        .text("kept")
        .raw(b"ctorch.jit._pickle\nbuild_tensorlist\n(]")
        .tensor(4, 1, &[3], &[1])
        .raw(b"atR");
    let pickle = pickle
        .text("numbers")
        .raw(b"ctorch.jit._pickle\nrestore_type_tag\n(}")
        .text("a")
        .raw(b"K\x01s")
        .text("Dict[str, int]")
        .raw(b"tR");
    let pickle = pickle
        .text("pair")
        .raw(b"c__torch__.model\nNamed\n(")
        .tensor(4, 3, &[1], &[1])
        .raw(b"K\x01tRub");
    let source = open_pickle(pickle, &floats(4)).expect("valid");
    let names: Vec<&str> = (source.tensors().iter())
        .map(|entry| entry.name.as_deref().expect("of the root"))
        .collect();
    assert_eq!(names, ["line.w", "kept.0", "pair.0"]);
    assert_eq!(source.info().root, "");
}

#[test]
fn a_name_of_a_dictionary_of_weights_is_a_name_like_others() {
    // In a state dict `model` would be the root.
    let pickle = object(Pickle::default(), 0).raw(b"}").text("model");
    let pickle = object(pickle, 1)
        .raw(b"}")
        .text("w")
        .tensor(4, 0, &[4], &[1])
        .raw(b"sbsb");
    let source = open_pickle(pickle, &floats(4)).expect("valid");
    assert_eq!(source.tensors()[0].name.as_deref(), Some("model.w"));
}

#[test]
fn objects_that_only_their_code_can_read_are_refused_by_name() {
    // The state of `packed` is a tuple around a tensor.
    let pickle = object(Pickle::default(), 0).raw(b"}").text("packed");
    let pickle = object(pickle, 1)
        .raw(b"(")
        .tensor(4, 0, &[4], &[1])
        .raw(b"\x88tbsb");
    let error = fault(pickle);
    assert!(
        matches!(&error, Error::Torch(TorchFault::Script { key, class, fault: ScriptFault::OwnState, .. })
            if key == "packed" && class == "__torch__.model.Module"),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "(memory): `packed` (`__torch__.model.Module` of TorchScript) is stored in a form of its own, which only its \
         code can read"
    );
    assert!(error.hint().is_some());
    let pickle = object(Pickle::default(), 0).raw(b"}").text("empty");
    let error = fault(object(pickle, 1).raw(b"sb"));
    let is_there = matches!(&error, Error::Torch(TorchFault::Script { key, fault: ScriptFault::NoState, .. }) if key == "empty");
    assert!(is_there, "{error}");
    // Without tensors, as a frozen model has none.
    let error = fault(
        object(Pickle::default(), 0)
            .raw(b"}")
            .text("training")
            .raw(b"\x89sb"),
    );
    let is_frozen = matches!(error, Error::Torch(TorchFault::ScriptWithoutTensors { .. }));
    assert!(is_frozen, "{error}");
    // Calls are refused here as everywhere.
    let pickle = object(Pickle::default(), 0).raw(b"}").text("a");
    let error = fault(pickle.raw(b"cposix\nsystem\n(").text("true").raw(b"tRsb"));
    let is_unsafe = matches!(error, Error::Torch(TorchFault::UnsafePickle { .. }));
    assert!(is_unsafe, "{error}");
    // The form before torch 1.4.
    let old = archive(&[("a/model.json", b"{}"), ("a/tensors/0", &floats(1))]);
    let error = files::open(old).err().expect("refused");
    let is_old = matches!(
        error,
        Error::Torch(TorchFault::Zip {
            fault: ZipFault::OldScript,
            ..
        })
    );
    assert!(is_old, "{error}");
}

#[test]
fn hostile_models_are_refused_within_the_readers_budgets() {
    // A part of itself, by the memo.
    let pickle = object(Pickle::default(), 0).raw(b"}").text("own");
    let error = fault(pickle.raw(b"h\0sb"));
    let is_own = matches!(&error, Error::Torch(TorchFault::Script { key, fault: ScriptFault::HoldsItself, .. }) if key == "own");
    assert!(is_own, "{error}");
    // The same around a corner.
    let pickle = object(Pickle::default(), 0).raw(b"}").text("a");
    let pickle = object(pickle, 1).raw(b"}").text("b").raw(b"h\0sbsb");
    let error = fault(pickle);
    let is_own = matches!(&error, Error::Torch(TorchFault::Script { key, .. }) if key == "a.b");
    assert!(is_own, "{error}");
    // A tensor a hundred thousand modules deep.
    let mut pickle = object(Pickle::default(), 0);
    for _ in 0..100_000 {
        pickle = object(pickle.raw(b"}").text("a"), 0);
    }
    pickle = pickle
        .raw(b"}")
        .text("w")
        .tensor(4, 0, &[4], &[1])
        .raw(b"sb");
    for _ in 0..100_000 {
        pickle = pickle.raw(b"sb");
    }
    let error = fault(pickle);
    let is_deep = matches!(
        error,
        Error::Torch(TorchFault::Pickle {
            fault: PickleFault::TooDeep { .. },
            ..
        })
    );
    assert!(is_deep, "{error}");
    // Forty levels, each of which holds the one below twice.
    let mut pickle = object(Pickle::default(), 0)
        .raw(b"}")
        .text("w")
        .tensor(4, 0, &[4], &[1])
        .raw(b"sb");
    for level in 1..40_u32 {
        let below = (level - 1).to_le_bytes();
        pickle = object(pickle, level)
            .raw(b"}(")
            .text("a")
            .raw(b"j")
            .raw(&below)
            .text("b")
            .raw(b"j")
            .raw(&below)
            .raw(b"ub");
    }
    let error = fault(pickle);
    let is_large = matches!(
        error,
        Error::Torch(TorchFault::Pickle {
            fault: PickleFault::TooManyObjects { .. } | PickleFault::TooMuchMemory { .. },
            ..
        })
    );
    assert!(is_large, "{error}");
    // A tensor of 2⁴⁰ elements in a storage of four, and one whose storage is not there.
    let huge = object(Pickle::default(), 0).raw(b"}").text("w");
    let error = fault(huge.tensor(4, 0, &[1 << 40], &[1]).raw(b"sb"));
    let is_out =
        matches!(&error, Error::Torch(TorchFault::TensorOutOfStorage { key, .. }) if key == "w");
    assert!(is_out, "{error}");
    let lost = object(Pickle::default(), 0).raw(b"}").text("w");
    let lost = lost.tensor(4, 0, &[4], &[1]).raw(b"sb").finish();
    let error = files::open(archive(&[("a/data.pkl", &lost), ("a/code/x.py", b"")]));
    let error = error.err().expect("refused");
    let is_missing = matches!(&error, Error::Torch(TorchFault::MissingEntry { entry, .. }) if entry == "a/data/0");
    assert!(is_missing, "{error}");
}
