//! Faults of low-rank adapters, with the file, the tensor and the line of the recipe.

use std::path::PathBuf;

use crate::DType;
use crate::recipe::Place;

/// A fault of a low-rank adapter that a recipe names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFault {
    /// An adapter that is not `W + s B A`.
    #[error("{}: adapters of the kind {kind} are not merged{place}", path.display())]
    Kind {
        /// The file that says so.
        path: PathBuf,
        /// The kind: a `peft_type`, or DoRA.
        kind: String,
        /// The model's entry.
        place: Place,
    },
    /// Settings that are no JSON, or wrong.
    #[error("{}: {reason}{place}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// The fault and its place.
        reason: String,
        /// The model's entry.
        place: Place,
    },
    /// A setting under which weights are made otherwise.
    #[error("{}: adapters with {setting} are not merged{place}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        setting: String,
        /// The model's entry.
        place: Place,
    },
    /// An adapter for a base with other tensors.
    #[error("{}: `{key}` changes `{target}`, which {} does not have{place}", path.display(), base.display())]
    Target {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        key: String,
        /// The tensor that it changes.
        target: String,
        /// The base.
        base: PathBuf,
        /// The remedy, by what the base has instead.
        advice: String,
        /// The model's entry.
        place: Place,
    },
    /// One half of a product without the other.
    #[error("{}: `{key}` needs `{other}`, which is not there{place}", path.display())]
    Half {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        key: String,
        /// The other half.
        other: String,
        /// The model's entry.
        place: Place,
    },
    /// Two changes of one tensor where one is meant.
    #[error("{}: `{key}` is a second change of `{target}`{place}", path.display())]
    Twice {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        key: String,
        /// The tensor that it changes.
        target: String,
        /// The model's entry.
        place: Place,
    },
    /// An adapter for a base with other shapes, or a base whose numbers are no plain floats.
    #[error("{}: `{key}` ({found}) does not fit `{target}`, {dtype} {expected:?}{place}", path.display())]
    Shape {
        /// The adapter.
        path: PathBuf,
        /// Its tensor.
        key: String,
        /// The shapes there, in words.
        found: String,
        /// The tensor that it changes.
        target: String,
        /// The shape of that.
        expected: Vec<usize>,
        /// The dtype of that.
        dtype: DType,
        /// The remedy, by the kind of the tensor.
        advice: String,
        /// The model's entry.
        place: Place,
    },
    /// A change of embeddings that a head shares which is not known by its name.
    #[error(
        "{}: it changes `{embedding}`, which the head of {} shares (`tie_word_embeddings`), and the adapter changes \
         the embeddings alone{place}", path.display(), base.display()
    )]
    Tied {
        /// The adapter.
        path: PathBuf,
        /// The embeddings.
        embedding: String,
        /// The base.
        base: PathBuf,
        /// The model's entry.
        place: Place,
    },
    /// Embeddings with rows for more tokens than the head has, or the other way round.
    #[error(
        "{}: `{changed}` has rows for {n_rows} tokens, and `{other}` has {n_others}{place}", path.display()
    )]
    Rows {
        /// The adapter.
        path: PathBuf,
        /// The tensor that the adapter brings whole.
        changed: String,
        /// Its rows.
        n_rows: usize,
        /// Another tensor with a row for each token.
        other: String,
        /// Its rows.
        n_others: usize,
        /// The model's entry.
        place: Place,
    },
    /// An adapter without tensors.
    #[error("{}: there is no tensor in it, so it changes nothing{place}", path.display())]
    NoTensors {
        /// The adapter.
        path: PathBuf,
        /// The model's entry.
        place: Place,
    },
    /// An adapter whose tensors have no elements.
    #[error(
        "{}: {n_empty} of {n_tensors} tensors are empty, `{key}` has shape {shape:?}{place}", path.display()
    )]
    EmptyTensors {
        /// The adapter.
        path: PathBuf,
        /// The first of them.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of them.
        n_empty: usize,
        /// The tensors of the adapter.
        n_tensors: usize,
        /// The model's entry.
        place: Place,
    },
    /// The iteration for singular values found no end.
    #[error("`{key}`: no singular value decomposition was found")]
    NoConvergence {
        /// The tensor.
        key: String,
    },
    /// Two models between which nothing differs that an adapter can hold.
    #[error(
        "{}: none of {n_tensors} tensors differs in a way that an adapter can hold; {n_left_out} differ in other ways",
        path.display()
    )]
    NothingToExtract {
        /// The fine-tuned model.
        path: PathBuf,
        /// Tensors that were looked at.
        n_tensors: usize,
        /// Those among them that differ.
        n_left_out: usize,
    },
}

impl AdapterFault {
    /// A hint for the user.
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Self::Target { advice, .. } | Self::Shape { advice, .. } => Some(advice),
            Self::Kind { .. } | Self::Setting { .. } => {
                Some("merge it with PEFT's merge_and_unload, and the result here")
            }
            Self::Tied { .. } => Some(
                "store the head in the base first, as a tensor of its own with `tie_word_embeddings: false`",
            ),
            Self::Rows { .. } => Some(
                "tokens were added before the adapter was trained: resize the embeddings and the head of the base \
                 to as many rows first",
            ),
            Self::NothingToExtract {
                n_left_out: 1.., ..
            } => Some(
                "--save-whole keeps norms and biases whole, --embeddings decomposes embeddings",
            ),
            Self::NoTensors { .. } => Some("save the adapter again"),
            Self::EmptyTensors { .. } => Some(
                "a run that keeps weights in pieces (ZeRO-3) saves such tensors: save the adapter again with its weights \
                 gathered",
            ),
            Self::Settings { .. }
            | Self::Half { .. }
            | Self::Twice { .. }
            | Self::NoConvergence { .. }
            | Self::NothingToExtract { .. } => None,
        }
    }
}
