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
    /// Ranks do not get along.
    #[error(transparent)]
    Ranks(#[from] crate::collective::Fault),
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
