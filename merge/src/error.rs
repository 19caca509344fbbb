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
    /// A key outside the grammar of the checkpoint's family.
    #[error("`{key}` is not a key of layout {layout}{}", nearest_note(nearest.as_deref()))]
    UnknownKey {
        /// The layout.
        layout: &'static str,
        /// The key.
        key: String,
        /// The most similar key of the family.
        nearest: Option<String>,
    },
    /// Two keys of a checkpoint claim the same place in the model.
    #[error("{}: `{first}` and `{second}` both stand for `{slot}`", path.display())]
    BrokenLayout {
        /// The checkpoint.
        path: PathBuf,
        /// The place, as the merged key.
        slot: String,
        /// One of the keys.
        first: String,
        /// The other.
        second: String,
    },
    /// A family was asked for by name that the checkpoint does not belong to.
    #[error("{}: not a checkpoint of layout `{layout}`: {missing}", path.display())]
    LayoutMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// The layout asked for.
        layout: String,
        /// What such a checkpoint would hold.
        missing: &'static str,
    },
    /// There is no family of this name.
    #[error("no layout named `{name}`{}", nearest_note(nearest.as_deref()))]
    UnknownLayout {
        /// The name.
        name: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },

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
        matches!(self, Self::UnknownLayout { .. })
    }

    /// What the user may try, where something helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TargetExists { .. } => Some("pass --force to replace it".into()),
            Self::LayoutMismatch { .. } => {
                Some("leave `layout` out to let the program find the family".into())
            }
            Self::UnknownLayout { .. } => {
                Some(format!("layouts are {}", crate::layouts::NAMES.join(", ")))
            }
            _ => None,
        }
    }
}

fn nearest_note(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (nearest: `{name}`)"))
}
