//! Faults of containers of other libraries: Flax, NumPy, ONNX, HDF5.

use std::path::PathBuf;

/// A fault of a file of arrays of another library than torch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerFault {
    /// The contents of the file are not of its format, or end too early.
    #[error("{}: byte {at}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte.
        at: u64,
        /// The fault there, in words.
        what: String,
    },
    /// A group or a dataset of HDF5 that is damaged, or of a kind that is not read.
    #[error("{}: `{key}`: {reason}", path.display())]
    Hdf5 {
        /// The file.
        path: PathBuf,
        /// The group or the dataset.
        key: String,
        /// Its fault.
        reason: String,
    },
    /// An array whose elements are not read.
    #[error("{}: `{key}` has elements of the type {dtype}, which is not read", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// The type, in the words of the format.
        dtype: String,
    },
    /// An array whose data are not as many bytes as its shape says.
    #[error("{}: `{key}` has the shape {shape:?} and {n_bytes} bytes of data, which do not fit", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Its shape.
        shape: Vec<u64>,
        /// The bytes of its data.
        n_bytes: u64,
    },
    /// Data in another file that is not read.
    #[error("{}: the data of `{key}` are in `{location}`: {reason}", path.display())]
    External {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// The other file, as this one calls it.
        location: String,
        /// The reason why it is not read.
        reason: &'static str,
    },
    /// A part of the file that is known, and not read.
    #[error("{}: `{key}` is {what}, which is not read", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// Its name.
        key: String,
        /// Its kind, in words.
        what: &'static str,
    },
    /// Data that could not be read.
    #[error("{}: cannot read `{key}`: {source}", path.display())]
    ReadTensor {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Data that are not those that were written.
    #[error("{}: {entry}: the CRC-32 is {computed:08x}, the archive says {stored:08x}; the data are damaged", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// The value that it states.
        stored: u32,
        /// The value by its bytes.
        computed: u32,
    },
}
