//! Tiny FLMs and batches of a golden set, as cases name them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::Weights;
use evaluate::forward::{Given, NamedPasses};
use evaluate::models::flm::{Config, Flm};
use evaluate::models::{Overrides, Streams};
use fixtures::{Case, Raw, list, text};
use merge::io::OpenOptions;

/// A model and its weights.
pub struct Opened {
    pub model: Flm,
    pub weights: Weights,
}

/// Every tensor of a case's checkpoint, those of a second one in place of the first one's, and without
/// layers of the reconstructor beyond the case's own number.
fn checkpoint(case: &Case) -> BTreeMap<String, Raw> {
    let mut tensors = BTreeMap::new();
    for name in list(&case["input"]) {
        let name = text(name);
        if name.starts_with("ckpt/") {
            tensors.extend(case.set().tensors(name));
        }
    }
    for half in ["bottom", "top"] {
        let Some(n) = case.count(&format!("num_reconstructor_{half}_layer")) else {
            continue;
        };
        let start = format!("fusion_layers_{half}.");
        tensors.retain(|name: &String, _| {
            let index = name
                .strip_prefix(&start)
                .and_then(|rest| rest.split('.').next());
            index.is_none_or(|index| index.parse::<usize>().expect("an index") < n)
        });
    }
    tensors
}

/// The model of a file, whose heads are those of the set, of weights as `change` has them.
pub fn open_weights(
    set: &fixtures::Set,
    file: &Path,
    streams: Option<Streams>,
    dtype: DType,
    change: impl FnOnce(Weights) -> Weights,
) -> Opened {
    let config = set.config();
    let heads = |name: &str| config[name].as_u64().map(|heads| heads as usize);
    let overrides = Overrides {
        n_heads: heads("num_heads"),
        image_heads: heads("vit_heads"),
        text_heads: heads("text_num_heads"),
        streams,
        ..Overrides::default()
    };
    let file = merge::io::open(file, &OpenOptions::default()).expect("the file opens");
    let file = Arc::new(file);
    let layout = merge::layouts::detect(&file).expect("a layout");
    let config = Config::read(&file, layout.as_ref(), &overrides).expect("sizes");
    let weights = Weights::new(file, layout.as_ref(), str::to_owned, &Device::Cpu, dtype);
    let weights = change(weights.expect("names are known"));
    Opened {
        model: Flm::load(&weights, config).expect("the model loads"),
        weights,
    }
}

/// The model of a case, read as the case says.
pub fn open(case: &Case, is_trainable: bool, dtype: DType) -> Opened {
    let streams = match (case.param("mode"), case["params"]["causal"].as_bool()) {
        (Some("one_stream"), Some(true)) => Some(Streams::Causal),
        (Some("one_stream"), _) => Some(Streams::Bidirectional),
        _ => None,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    fixtures::write(&file, &checkpoint(case));
    open_weights(
        case.set(),
        &file,
        streams,
        dtype,
        |weights| match is_trainable {
            true => weights.trainable(),
            false => weights,
        },
    )
}

/// The tensors of a case's batch under the names of passes, with those of other files that have no batches, and
/// `others`.
pub fn given(case: &Case, model: &Flm, others: BTreeMap<String, Raw>, dtype: DType) -> Given {
    let batch = case.param("batch").expect("a batch");
    let mut tensors = others;
    for name in list(&case["input"]) {
        let name = text(name);
        if name.starts_with("ckpt/") {
            continue;
        }
        for (key, raw) in case.set().tensors(name) {
            let of_batch = key
                .strip_prefix(batch)
                .and_then(|rest| rest.strip_prefix('.'));
            match (of_batch, key.contains('.')) {
                (Some(own), _) => tensors.insert(own.to_owned(), raw),
                (None, true) => None,
                (None, false) => tensors.insert(key, raw),
            };
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("inputs.safetensors");
    fixtures::write(&file, &tensors);
    let file = merge::io::open(&file, &OpenOptions::default()).expect("the file opens");
    Given::open(&file, model.inputs(), &Device::Cpu, dtype).expect("inputs")
}
