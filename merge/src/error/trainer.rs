//! Faults of models that trainers left in pieces, with the file and the tensor.

use std::path::PathBuf;

use super::{MegatronFault, ZeroFault};

/// A fault of a folder that a trainer left, with the file and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerFault {
    /// A file holds a part of a model only.
    #[error("{}: is one part of a {kind}; the model is the folder {}", path.display(), folder.display())]
    OnePart {
        /// The file.
        path: PathBuf,
        /// What users call the whole.
        kind: &'static str,
        /// Its folder.
        folder: PathBuf,
    },
    /// A folder holds models of several kinds.
    #[error("{}: several models in this folder: a {}", folder.display(), kinds.join(" and a "))]
    SeveralKinds {
        /// The folder.
        folder: PathBuf,
        /// What users call them.
        kinds: Vec<&'static str>,
    },
    /// Several folders of a folder hold a model.
    #[error("{}: several models in this folder: {}", folder.display(), folders.join(", "))]
    SeveralFolders {
        /// The folder.
        folder: PathBuf,
        /// Names of the folders with a model.
        folders: Vec<String>,
    },
    /// A model in pieces is not of this machine.
    #[error("{}: a {kind} is read from a folder of this machine only", folder.display())]
    Remote {
        /// The address.
        folder: PathBuf,
        /// What users call it.
        kind: &'static str,
    },
    /// A file names another outside of the folder.
    #[error("{}: the file `{file}` that the checkpoint names is not in its folder", folder.display())]
    OutsideFolder {
        /// The folder.
        folder: PathBuf,
        /// The file as named.
        file: String,
    },
    /// A file that another names is not there.
    #[error("{}: the file `{file}` of the checkpoint is missing", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// A checkpoint of DeepSpeed is damaged or incomplete.
    #[error(transparent)]
    Zero(#[from] ZeroFault),
    /// A checkpoint of Megatron-LM is damaged or incomplete.
    #[error(transparent)]
    Megatron(#[from] MegatronFault),
}
