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
