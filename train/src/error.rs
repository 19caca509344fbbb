//! What can go wrong in training.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model, data set or task failed.
    #[error(transparent)]
    Evaluate(#[from] evaluate::Error),
    /// A checkpoint, recipe or plan failed.
    #[error(transparent)]
    Merge(#[from] merge::Error),
    /// The tensor library or the device failed.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
    /// A recipe names an objective that does not exist.
    #[error("there is no objective `{name}`; known are {known}")]
    UnknownObjective {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A data set does not give what an objective learns from.
    #[error("the objective needs {what}, which the data do not have")]
    NotInBatch {
        /// What is missing.
        what: &'static str,
    },
    /// A recipe cannot be read.
    #[error("{}: {reason}", path.display())]
    BadRecipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong, with line and column where they are known.
        reason: String,
    },
    /// A setting of a recipe cannot be.
    #[error("`{key}`: {reason}")]
    BadSetting {
        /// The setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The state of a run cannot be taken up.
    #[error("{}: {reason}", path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A split has no labels to learn from.
    #[error("the split `{split}` of {dataset} has no labels to learn from")]
    NoLabels {
        /// The data set.
        dataset: String,
        /// The split.
        split: String,
    },
    /// A label is no class.
    #[error("an answer has the label {label}")]
    NegativeLabel {
        /// The label.
        label: i64,
    },
    /// A batch of one example has no other to be compared with.
    #[error("matching needs at least two examples in the batch, for one is compared with others")]
    NoNegative,
    /// The image tokenizer's tokens are not one for each patch.
    #[error(
        "{tokens} visual tokens for {patches} patches; the tokenizer's view and the patches differ in number"
    )]
    OtherPatches {
        /// Tokens.
        tokens: usize,
        /// Patches.
        patches: usize,
    },
    /// A loss or a gradient is infinite or not a number.
    #[error("{part} is not finite")]
    NotFinite {
        /// The loss part or gradient.
        part: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, e.g. `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// An input or output error with its path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
