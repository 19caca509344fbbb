//! Everything that can go wrong in this crate, one variant per fault.

use std::path::PathBuf;

use crate::DType;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the file, the key and the numbers at hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- files ------------------------------------------------------------------------------
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `read`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The target exists and overwriting was not asked for.
    #[error("{}: already exists", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The operation was stopped by the user.
    #[error("stopped; nothing was written")]
    Cancelled,

    // ---- tensors ----------------------------------------------------------------------------
    /// A tensor was asked for that the checkpoint does not hold.
    #[error("{}: no tensor named `{key}`{}", path.display(), nearest_note(nearest.as_deref()))]
    MissingKey {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        key: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// Two tensors of one checkpoint have the same name.
    #[error("{}: the name `{key}` belongs to more than one tensor", path.display())]
    DuplicateKey {
        /// The checkpoint.
        path: PathBuf,
        /// The name.
        key: String,
    },
    /// Arithmetic was asked for on a dtype that has none here.
    #[error("`{key}` has dtype {dtype}, which cannot be converted to {wanted}")]
    UnsupportedCast {
        /// The tensor.
        key: String,
        /// Its dtype.
        dtype: DType,
        /// The wanted dtype.
        wanted: DType,
    },

    // ---- reading: safetensors ---------------------------------------------------------------

    // ---- reading: torch ---------------------------------------------------------------------

    // ---- layouts and conversion -------------------------------------------------------------

    // ---- merging ----------------------------------------------------------------------------
    /// Two members of a group differ in shape.
    #[error("cannot merge `{slot}`: `{key}` has shape {found:?}, expected {expected:?}")]
    ShapeMismatch {
        /// The merged key.
        slot: String,
        /// The member that differs.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The first member's shape.
        expected: Vec<usize>,
    },
    // ---- writing ----------------------------------------------------------------------------
}

impl Error {
    /// Whether the fault lies in the arguments or the recipe (exit code 2) rather than in a file.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        false
    }

    /// What the user may try, where something helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TargetExists { .. } => Some("pass --force to replace it".into()),
            _ => None,
        }
    }
}

fn nearest_note(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (nearest: `{name}`)"))
}
