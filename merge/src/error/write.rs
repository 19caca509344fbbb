//! Reasons that keep a checkpoint from being written.

use std::path::PathBuf;

/// A reason why a checkpoint cannot be written, with the target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteFault {
    /// The extension of the target names no kind of file that is written here.
    #[error("{}: the extension does not say what kind of file to write", path.display())]
    UnknownOutput {
        /// The target.
        path: PathBuf,
    },
    /// Another name of a tensor that is a tensor itself, or that of none, or the name of the metadata.
    #[error(
        "{}: `{name}` cannot be written as another name of `{of}`: it must be no name of a tensor or of the \
         metadata, and `{of}` must be a tensor", path.display()
    )]
    Alias {
        /// The target.
        path: PathBuf,
        /// The other name.
        name: String,
        /// The tensor's.
        of: String,
    },
    /// A kind of file that has no tensors of this dtype.
    #[error("{}: this kind of file has no dtype {dtype}, which `{key}` has", path.display())]
    NoSuchDType {
        /// The target.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its dtype.
        dtype: crate::DType,
    },
    /// A GGUF file of tensors alone, which no program runs.
    #[error("{}: a GGUF file needs the settings of its model, which `vlmerge convert` takes from a model folder", path.display())]
    GgufWithoutSettings {
        /// The target.
        path: PathBuf,
    },
    /// More axes than a tensor of a GGUF file has.
    #[error("{}: `{key}` has {n_axes} axes; a tensor of a GGUF file has at most 4", path.display())]
    TooManyAxes {
        /// The target.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its axes.
        n_axes: usize,
    },
    /// Lightning checkpoints are single files here, and parts of GGUF files are found by the ending `.gguf`.
    #[error("{}: this kind of file cannot be split into shards", path.display())]
    CannotShard {
        /// The target.
        path: PathBuf,
    },
    /// More parts than the metadata of a GGUF file can count, or readers open.
    #[error("{}: the model would be {n_parts} GGUF files, and readers take up to {limit}", path.display())]
    TooManyParts {
        /// The target.
        path: PathBuf,
        /// The files that it would be.
        n_parts: usize,
        /// The most that there can be.
        limit: usize,
    },
    /// The target is a folder.
    #[error("{}: is a folder, not a file to write", path.display())]
    TargetIsFolder {
        /// The target.
        path: PathBuf,
    },
    /// A file that is none of this program's is in place of an unfinished run's file.
    #[error(
        "{}: is in the way: not a file that an unfinished run of this user left here", path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// A file of the folder that is to be replaced is read by the merge.
    #[error("{}: is an input of the merge, and would be removed from the output's folder", path.display())]
    InputInTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The folder of the target does not exist.
    #[error("{}: the folder does not exist", folder.display())]
    MissingFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk has no room for the output.
    #[error(
        "{}: the disk has room for {available} bytes, the output needs {needed}", folder.display()
    )]
    DiskSpace {
        /// The folder of the target.
        folder: PathBuf,
        /// Bytes of the output.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A tensor cannot have this name in this kind of file.
    #[error("{}: no tensor may be called `{key}` in this kind of file", path.display())]
    ReservedName {
        /// The target.
        path: PathBuf,
        /// The name.
        key: String,
    },
    /// The final metadata need more room than the placeholders had.
    #[error("{}: the metadata grew by {n_bytes} bytes while the file was written", path.display())]
    MetadataGrew {
        /// The target.
        path: PathBuf,
        /// Bytes for which there is no room.
        n_bytes: u64,
    },
    /// The names, shapes and metadata are longer than a safetensors header may be.
    #[error("{}: the header would have {n_bytes} bytes, safetensors allows 100000000", path.display())]
    HeaderTooLong {
        /// The target.
        path: PathBuf,
        /// Bytes of the header.
        n_bytes: u64,
    },
    /// The output was to be finished before all of its data had been written.
    #[error("{}: {written} of {n_bytes} bytes of `{key}` were written", path.display())]
    Incomplete {
        /// The target.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Bytes that were written.
        written: u64,
        /// Its size.
        n_bytes: u64,
    },
}
