//! The files of one rank of Megatron: its part of the model, and the arguments of the run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::names::is_extra_state;
use crate::io::torch::{Pickle, View};
use crate::io::trainer::open_torch;
use crate::io::trainer::pool::Pool;
use crate::io::{ObjectPath, PathSegment, TensorSource};
use crate::{Error, MegatronFault, Result, TensorInfo};

/// The most parts of a model that a stage may have: stages have several where they take turns.
const PART_LIMIT: usize = 1 << 10;

/// How a run split its model, and the sizes that tell whether the parts are all there.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    /// Ranks of a stage.
    pub(super) tensors: usize,
    /// Stages.
    pub(super) stages: usize,
    pub(super) n_layers: Option<usize>,
    /// Rows of the tables of tokens, with those that fill them up.
    pub(super) n_tokens: Option<usize>,
    /// Width of feed-forward networks.
    pub(super) network_width: Option<usize>,
    /// Whether feed-forward networks are gated.
    pub(super) is_gated: bool,
    /// Whether the head has weights of its own.
    pub(super) is_untied: bool,
}

/// The file of a rank.
pub(super) struct Rank {
    pub(super) path: PathBuf,
    pub(super) source: Box<dyn TensorSource>,
    /// `None` in a file without `args`.
    pub(super) arguments: Option<Arguments>,
    /// `checkpoint_version`, which says how queries, keys and values lie.
    pub(super) version: f64,
    /// Tensors of each part of the model, by their names within it.
    pub(super) parts: Vec<BTreeMap<String, usize>>,
}

impl Rank {
    pub(super) fn open(path: &Path, files: &Arc<Pool>) -> Result<Self> {
        let (source, objects) = open_torch(path, files)?;
        let arguments = (objects.view().get("args"))
            .map(|args| arguments(path, args))
            .transpose()?;
        let parts = parts(path, source.as_ref(), &objects)?;
        let version = objects.view().get("checkpoint_version");
        Ok(Self {
            path: path.into(),
            arguments,
            // Files from before there were versions.
            version: version
                .and_then(|version| version.number().ok())
                .unwrap_or(0.0),
            parts,
            source,
        })
    }

    /// Shape and dtype of a tensor.
    pub(super) fn info(&self, tensor: usize) -> &TensorInfo {
        &self.source.tensors()[tensor].info
    }
}

/// The tensors of `model`, or of `model0`, `model1` and so on.
fn parts(
    path: &Path,
    source: &dyn TensorSource,
    objects: &Pickle,
) -> Result<Vec<BTreeMap<String, usize>>> {
    let root = objects.view();
    let keys: Vec<String> = match root.get("model") {
        Some(_) => vec!["model".into()],
        None => (0..PART_LIMIT)
            .map(|part| format!("model{part}"))
            .take_while(|key| root.get(key).is_some())
            .collect(),
    };
    if keys.is_empty() {
        return Err(MegatronFault::BadEntry {
            path: path.into(),
            entry: "model".into(),
            found: "missing",
            wanted: "a dictionary of tensors",
        }
        .into());
    }
    let mut parts = vec![BTreeMap::new(); keys.len()];
    for (index, tensor) in source.tensors().iter().enumerate() {
        let Some((PathSegment::Key(key), rest)) = tensor.path.0.split_first() else {
            continue;
        };
        let Some(part) = keys.iter().position(|known| known == key) else {
            continue;
        };
        let name = ObjectPath(rest.to_vec()).to_string();
        if is_extra_state(&name) || rest.is_empty() {
            continue;
        }
        if parts[part].insert(name.clone(), index).is_some() {
            return Err(Error::DuplicateKey {
                path: path.into(),
                key: name,
            });
        }
    }
    Ok(parts)
}

fn arguments(path: &Path, args: View<'_>) -> Result<Arguments> {
    let size = |name: &str| -> Result<Option<usize>> {
        let Some(value) = args.get(name) else {
            return Ok(None);
        };
        match value.count().map(usize::try_from) {
            Ok(Ok(size)) => Ok(Some(size)),
            _ => Err(MegatronFault::BadEntry {
                path: path.into(),
                entry: format!("args.{name}"),
                found: value.kind(),
                wanted: "a size",
            }
            .into()),
        }
    };
    let says = |name: &str| args.get(name).is_some_and(|value| value.flag() == Ok(true));
    let experts = |what: String| {
        Err(MegatronFault::Experts {
            path: path.into(),
            what,
        }
        .into())
    };
    if let Some(n @ 1..) = size("num_experts")? {
        return experts(format!("the model has {n} experts in a layer"));
    }
    if let Some(n @ 2..) = size("expert_model_parallel_size")? {
        return experts(format!("experts are split over {n} ranks"));
    }
    let at_least_one = |n: Option<usize>| n.unwrap_or(1).max(1);
    let tensors = match size("tensor_model_parallel_size")? {
        Some(n) => Some(n),
        None => size("model_parallel_size")?,
    };
    Ok(Arguments {
        tensors: at_least_one(tensors),
        stages: at_least_one(size("pipeline_model_parallel_size")?),
        n_layers: size("num_layers")?,
        n_tokens: size("padded_vocab_size")?,
        network_width: size("ffn_hidden_size")?,
        is_gated: ["swiglu", "quick_geglu", "gated_linear_unit"]
            .into_iter()
            .any(says),
        is_untied: says("untie_embeddings_and_output_weights"),
    })
}
