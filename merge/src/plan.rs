//! What happens to every key: the checked form of a recipe or of a conversion.

use std::sync::Arc;

use serde::Serialize;

use crate::gram::GramStore;
use crate::io::SourceFile;
use crate::methods::{ElementKernel, StepRounding, WholeKernel};
use crate::{Checkpoint, TensorInfo};

mod resolve;

/// A tensor of one of the plan's sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TensorRef {
    /// Index into [`MergePlan::sources`].
    pub source: usize,
    /// Its name there.
    pub key: String,
}

/// Makes elements of a tensor out of nothing, for fresh heads and synthetic checkpoints.
pub trait Generator: Send + Sync {
    /// Writes elements `first..first + out.len()`, the same for any split into chunks.
    fn fill(&self, first: usize, out: &mut [f32]);
}

/// How an output tensor is made.
#[derive(Clone)]
#[non_exhaustive]
pub enum Action {
    /// The same values; cast if the output dtype differs.
    Copy(TensorRef),
    /// Element by element from members of the same shape.
    Elementwise {
        /// The members in order.
        members: Vec<TensorRef>,
        /// What the method measures from.
        base: Option<TensorRef>,
        /// The arithmetic.
        kernel: Arc<dyn ElementKernel>,
        /// Rounding of intermediate results.
        step: StepRounding,
    },
    /// From whole arrays.
    Whole {
        /// The members in order.
        members: Vec<TensorRef>,
        /// What the method measures from.
        base: Option<TensorRef>,
        /// Names of the members' gram matrices in [`MergePlan::grams`]; empty if none are needed.
        grams: Vec<Option<String>>,
        /// The arithmetic.
        kernel: Arc<dyn WholeKernel>,
    },
    /// From a generator.
    Generate(Arc<dyn Generator>),
}

impl Action {
    /// The tensors that are read, members first, then the base.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorRef> {
        let (members, base) = match self {
            Self::Copy(tensor) => (std::slice::from_ref(tensor), None),
            Self::Elementwise { members, base, .. } | Self::Whole { members, base, .. } => {
                (members.as_slice(), base.as_ref())
            }
            Self::Generate(_) => (&[][..], None),
        };
        members.iter().chain(base)
    }

    /// Names of the gram matrices that are read.
    pub fn grams(&self) -> impl Iterator<Item = &str> {
        let grams = match self {
            Self::Whole { grams, .. } => grams.as_slice(),
            _ => &[],
        };
        grams.iter().flatten().map(String::as_str)
    }
}

/// One output tensor.
#[derive(Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape and dtype.
    pub info: TensorInfo,
    /// How it is made.
    pub action: Action,
    /// Why, in a few words for the printed plan, e.g. `0.5 vision + 0.5 language`.
    pub why: String,
}

/// An input tensor that has no place in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The tensor.
    pub tensor: TensorRef,
    /// Why it is left out.
    pub why: String,
}

/// What happens to every key. A plan is complete and consistent by construction: every key of the
/// merged source is used or dropped with a reason, and all shapes and dtypes agree.
pub struct MergePlan {
    /// What the output is made by, for its provenance: a resolved recipe or a command, with file
    /// names instead of paths so that the same inputs give the same bytes anywhere.
    pub recipe: String,
    /// The open inputs.
    pub sources: Vec<Arc<Checkpoint>>,
    /// Where gram matrices are read from.
    pub grams: Option<Arc<GramStore>>,
    /// Output tensors, by name.
    pub entries: Vec<Entry>,
    /// Input tensors without a place in the output, by name.
    pub dropped: Vec<Dropped>,
}

impl MergePlan {
    /// Every file that the plan reads from, each once.
    #[must_use]
    pub fn files(&self) -> Vec<SourceFile> {
        let grams = self.grams.iter().map(|store| store.checkpoint());
        let mut files: Vec<SourceFile> = Vec::new();
        for file in (self.sources.iter().chain(grams)).flat_map(|source| &source.info().files) {
            if files.iter().all(|known| known.path != file.path) {
                files.push(file.clone());
            }
        }
        files
    }

    /// Tensor bytes of the output.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.info.n_bytes()).sum()
    }

    /// Tensor bytes that are read, gram matrices included.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| self.entry_input_bytes(entry))
            .sum()
    }

    /// Tensor bytes that one entry reads.
    #[must_use]
    pub fn entry_input_bytes(&self, entry: &Entry) -> u64 {
        let size = |tensor: &TensorRef| {
            let info = self.sources[tensor.source].get(&tensor.key);
            info.map_or(0, TensorInfo::n_bytes)
        };
        let gram_size = |key| {
            let store = self.grams.as_ref();
            let info = store.and_then(|store| store.checkpoint().get(key));
            info.map_or(0, TensorInfo::n_bytes)
        };
        let action = &entry.action;
        action.tensors().map(size).sum::<u64>() + action.grams().map(gram_size).sum::<u64>()
    }

    /// Most bytes of tensor data that running the plan holds in memory at once.
    #[must_use]
    pub fn peak_bytes(&self, n_threads: usize) -> u64 {
        let chunked = self.entries.iter().map(|entry| match &entry.action {
            Action::Elementwise { .. } => entry.action.tensors().count(),
            _ => 1,
        });
        // Each thread holds a chunk per member in up to f64, raw bytes and the result.
        let buffers = chunked.max().unwrap_or(0) as u64 + 2;
        let chunks = n_threads as u64 * buffers * CHUNK_ELEMENTS as u64 * 8;
        let whole = self.entries.iter().filter_map(|entry| match &entry.action {
            Action::Whole {
                members, kernel, ..
            } => {
                let shape = &self.sources[members.first()?.source]
                    .get(&members.first()?.key)?
                    .shape;
                Some(kernel.peak_bytes(shape, members.len()))
            }
            _ => None,
        });
        chunks.max(whole.max().unwrap_or(0))
    }
}

/// Elements that are decoded, combined and written at a time by one thread: small enough that a few
/// chunks stay in a core's cache, large enough that a system call costs nothing beside it.
pub(crate) const CHUNK_ELEMENTS: usize = 1 << 16;
