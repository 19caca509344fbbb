//! Everything that can go wrong in this crate, one variant per fault.

use std::path::PathBuf;

use crate::DType;
use crate::io::{PickleCall, PickleFault, ZipFault};

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
    /// The first bytes are those of no supported kind of file.
    #[error("{}: neither a safetensors file nor a torch file", path.display())]
    UnknownFormat {
        /// The file.
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
    /// A pickle is damaged, or says what this program does not read.
    #[error("{}: {entry}: byte {offset}: {fault}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The entry of the archive, or the part of a legacy file.
        entry: String,
        /// Byte of the entry at which the opcode stands.
        offset: u64,
        /// What is wrong.
        fault: PickleFault,
    },
    /// A pickle calls functions that are not known to build harmless data. Nothing was run.
    #[error("{}: {entry}: {}", path.display(), calls_note(calls))]
    UnsafePickle {
        /// The file.
        path: PathBuf,
        /// The entry of the archive, or the part of a legacy file.
        entry: String,
        /// Every such call, in file order; the first 64 of them.
        calls: Vec<PickleCall>,
    },
    /// A zip archive or one of its entries is damaged, or unlike what torch writes.
    #[error("{}: {}{fault}", path.display(), entry_note(entry.as_deref()))]
    Zip {
        /// The file.
        path: PathBuf,
        /// The entry, if it is one.
        entry: Option<String>,
        /// What is wrong.
        fault: ZipFault,
    },
    /// An entry that a torch file refers to is not there.
    #[error("{}: the entry `{entry}` is missing", path.display())]
    MissingEntry {
        /// The file.
        path: PathBuf,
        /// Name of the entry.
        entry: String,
    },
    /// The bytes of an entry are not those that were written.
    #[error(
        "{}: {entry}: the CRC-32 is {computed:08x}, the archive says {stored:08x}; the data are damaged",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// What the archive says.
        stored: u32,
        /// What the data have.
        computed: u32,
    },
    /// A tensor claims elements that its storage does not have.
    #[error(
        "{}: `{key}` needs bytes 0..{needs} of {entry}, which has {has} bytes",
        path.display()
    )]
    TensorOutOfStorage {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The entry of its storage.
        entry: String,
        /// One after the last byte that it needs.
        needs: u64,
        /// Size of the storage.
        has: u64,
    },
    /// The values of a tensor are far more than its storage holds, as after a huge `expand`.
    #[error(
        "{}: `{key}` would expand {has} stored bytes to {n_bytes} bytes",
        path.display()
    )]
    TensorExpanded {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Size of its row-major data.
        n_bytes: u64,
        /// Size of the storage.
        has: u64,
    },
    /// A tensor is of a kind that has no counterpart here: complex, sparse, quantized.
    #[error("{}: `{key}` is a tensor of the kind {kind}, which is not supported", path.display())]
    UnsupportedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its kind.
        kind: &'static str,
    },
    /// The file holds an object of a class instead of tensors.
    #[error("{}: the file holds a pickled `{class}` instead of a dictionary of tensors", path.display())]
    PickledObject {
        /// The file.
        path: PathBuf,
        /// The class, `module.name`.
        class: String,
    },
    /// The wanted root does not exist.
    #[error("{}: no root named `{root}` (roots: {})", path.display(), roots_note(roots))]
    UnknownRoot {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        root: String,
        /// What there is.
        roots: Vec<String>,
    },

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
            Self::UnsafePickle { .. } => Some(
                "nothing was run; do not load this file with torch.load(weights_only=False)".into(),
            ),
            Self::PickledObject { .. } => {
                Some("save its state_dict() instead: torch.save(model.state_dict(), path)".into())
            }
            Self::Zip {
                fault: ZipFault::Compressed(_),
                ..
            } => Some("pack the archive again without compression, e.g. with zip -0".into()),
            Self::Checksum { .. } => Some("fetch the file again and compare its hash".into()),
            _ => None,
        }
    }
}

fn calls_note(calls: &[PickleCall]) -> String {
    let list: Vec<String> = (calls.iter())
        .map(|call| format!("`{}` (byte {})", call.callable, call.offset))
        .collect();
    format!("refused, because loading it would call {}", list.join(", "))
}

fn entry_note(entry: Option<&str>) -> String {
    entry.map_or_else(String::new, |entry| format!("{entry}: "))
}

fn roots_note(roots: &[String]) -> String {
    let list: Vec<String> = roots.iter().map(|root| format!("`{root}`")).collect();
    list.join(", ")
}

fn nearest_note(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (nearest: `{name}`)"))
}
