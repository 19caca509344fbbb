//! Faults of pickles and of zip archives, with the entry and the byte.

use std::path::PathBuf;

use crate::io::{PickleCall, PickleFault, ScriptFault, ZipFault};

/// A fault of a file of torch, with the entry and the byte or the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchFault {
    /// A pickle is damaged, or says what this program does not read.
    #[error("{}: {entry}: byte {offset}: {fault}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The entry of the archive, or the part of a legacy file.
        entry: String,
        /// Byte of the entry at which the opcode stands.
        offset: u64,
        /// The fault.
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
        /// The fault.
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
        /// The checksum in the archive.
        stored: u32,
        /// The checksum of the data.
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
    /// An object of a TorchScript model cannot be read as attributes.
    #[error(
        "{}: {} (`{class}` of TorchScript) {fault}",
        path.display(),
        script_note(key)
    )]
    Script {
        /// The file.
        path: PathBuf,
        /// The object within the model; empty for the model itself.
        key: String,
        /// Its class, `module.name`.
        class: String,
        /// The reason.
        fault: ScriptFault,
    },
    /// A TorchScript model has no tensors among its attributes.
    #[error(
        "{}: the TorchScript model `{class}` has no tensors by name; one that was frozen keeps them \
         as constants of its code",
        path.display()
    )]
    ScriptWithoutTensors {
        /// The file.
        path: PathBuf,
        /// The class, `module.name`.
        class: String,
    },
}

fn script_note(key: &str) -> String {
    match key {
        "" => "the model".into(),
        key => format!("`{key}`"),
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
