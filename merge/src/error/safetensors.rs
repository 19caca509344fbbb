//! Faults of safetensors files, with the key and the byte range.

use std::path::PathBuf;

/// A fault of a safetensors file, with the key and the byte range.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsFault {
    /// The file ends before the length of its header.
    #[error("{}: {n_file_bytes} bytes are too few for a safetensors file", path.display())]
    HeaderCut {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_file_bytes: u64,
    },
    /// The header is longer than the file, or than the format allows.
    #[error(
        "{}: bytes 0..8 give a header of {n_header_bytes} bytes; the file has {n_file_bytes}, \
         the format allows 100000000", path.display()
    )]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The length that it gives.
        n_header_bytes: u64,
        /// Its size.
        n_file_bytes: u64,
    },
    /// The header is not UTF-8.
    #[error("{}: byte {at} of the header is not UTF-8", path.display())]
    HeaderNotText {
        /// The file.
        path: PathBuf,
        /// The position in the file.
        at: u64,
    },
    /// The header is not an object of tensors in JSON.
    #[error("{}: the header in bytes 8..{end} is not valid: {source}", path.display())]
    HeaderJson {
        /// The file.
        path: PathBuf,
        /// The end of the header.
        end: u64,
        /// The fault and its place in the header.
        source: serde_json::Error,
    },
    /// The safetensors crate refuses the header for a reason that has no variant of its own.
    #[error("{}: the header is not valid: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: ::safetensors::SafeTensorError,
    },
    /// A dtype of the format that has no place here.
    #[error("{}: `{key}` has dtype {dtype}, which is not supported", path.display())]
    UnsupportedDType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The dtype's name in the file.
        dtype: String,
    },
    /// The bytes of a shape cannot be counted.
    #[error("{}: `{key}` has shape {shape:?}, whose size overflows", path.display())]
    ShapeOverflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The byte range of a tensor does not fit its dtype and shape.
    #[error(
        "{}: `{key}` has the data bytes {first}..{end}, but its dtype and shape need {n_bytes}",
        path.display()
    )]
    RangeSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first byte of its data, counted from the end of the header.
        first: usize,
        /// The end of its data.
        end: usize,
        /// The number of bytes that it must have.
        n_bytes: usize,
    },
    /// The data of two tensors overlap, or leave a hole.
    #[error(
        "{}: `{key}` has the data bytes {first}..{end}, but must begin at {expected}",
        path.display()
    )]
    RangePlace {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first byte of its data, counted from the end of the header.
        first: usize,
        /// The end of its data.
        end: usize,
        /// The end of the tensor before it.
        expected: usize,
    },
    /// The file was cut, or goes on after the last tensor.
    #[error("{}: the tensors need {expected} data bytes, the file has {found}", path.display())]
    DataLength {
        /// The file.
        path: PathBuf,
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
    /// The metadata's record of other names is no JSON object of strings.
    #[error(
        "{}: the metadata's `vlmerge.aliases` is no JSON object of names: {source}", path.display()
    )]
    AliasesJson {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: serde_json::Error,
    },
    /// A name that is recorded as another tensor's is a tensor of its own.
    #[error(
        "{}: the metadata's `vlmerge.aliases` says that `{name}` is another name of `{of}`, but `{name}` is a \
         tensor of its own", path.display()
    )]
    AliasIsTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The tensor that the record gives for it.
        of: String,
    },
    /// A name is recorded as that of a tensor that is not there.
    #[error(
        "{}: the metadata's `vlmerge.aliases` says that `{name}` is another name of `{of}`, {}", path.display(),
        if *is_alias { "which is no tensor but an alias itself" } else { "which is no tensor of the file" }
    )]
    AliasOfNothing {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The tensor that the record gives for it.
        of: String,
        /// Whether that is recorded as an alias itself.
        is_alias: bool,
    },
    /// The data of a tensor cannot be read.
    #[error("{}: cannot read bytes {first}..{end} of `{key}`: {source}", path.display())]
    ReadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first byte in the file.
        first: u64,
        /// The byte after the last.
        end: u64,
        /// The system's reason.
        source: std::io::Error,
    },
}
