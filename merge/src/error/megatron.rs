//! Faults of checkpoints of Megatron-LM, with the rank and the tensor.

use std::path::PathBuf;

use super::{Error, TrainerFault};

/// A fault of a checkpoint of Megatron-LM, with the rank and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MegatronFault {
    /// The file with the number of the last iteration has something else in it.
    #[error("{}: holds neither the number of an iteration nor `release`", path.display())]
    BadTracker {
        /// The file.
        path: PathBuf,
    },
    /// The folder of the last iteration is not there, or holds no model.
    #[error("{}: `latest_checkpointed_iteration.txt` names `{iteration}`, which holds no model", folder.display())]
    NoSuchIteration {
        /// The folder.
        folder: PathBuf,
        /// The folder of the iteration.
        iteration: String,
    },
    /// The model is a mixture of experts.
    #[error("{}: {what}; mixtures of experts are not put together here", path.display())]
    Experts {
        /// The file, or the folder.
        path: PathBuf,
        /// The sign of it.
        what: String,
    },
    /// A file does not say how the model was split.
    #[error("{}: has no `args`, which say how the model is split", path.display())]
    NoArguments {
        /// The file.
        path: PathBuf,
    },
    /// A file lacks an entry, or has something else in its place.
    #[error("{}: `{entry}` is {found}, not {wanted}", path.display())]
    BadEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// The value found.
        found: &'static str,
        /// The expected value.
        wanted: &'static str,
    },
    /// The folder of a rank is not there.
    #[error("{}: tensor rank {tensor} of pipeline stage {stage} is missing; the model is split over {tensors} x {stages} ranks", folder.display())]
    MissingRank {
        /// The folder.
        folder: PathBuf,
        /// The rank within the stage.
        tensor: usize,
        /// The stage.
        stage: usize,
        /// Ranks of a stage.
        tensors: usize,
        /// How many stages there are.
        stages: usize,
    },
    /// A rank is of a run that was split in another way.
    #[error("{}: is of a model that is split over {} x {} ranks, the others over {} x {}", path.display(), found[0], found[1], wanted[0], wanted[1])]
    OtherWorld {
        /// The file, or the folder of the rank.
        path: PathBuf,
        /// Tensor ranks and pipeline stages as it says.
        found: [usize; 2],
        /// Those of the others.
        wanted: [usize; 2],
    },
    /// Two folders are of one rank.
    #[error("{}: `{}` and `{}` are of the same rank", folder.display(), ranks[0], ranks[1])]
    TwoFolders {
        /// The folder.
        folder: PathBuf,
        /// The folders of the rank.
        ranks: [String; 2],
    },
    /// A rank has no part of a tensor that another has a part of.
    #[error("{}: has no `{key}`, which {} has", path.display(), other.display())]
    MissingTensor {
        /// The file without it.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The file with it.
        other: PathBuf,
    },
    /// Two ranks should have the same tensor, but do not.
    #[error("`{key}` is not the same in {} and {}", files[0].display(), files[1].display())]
    Differs {
        /// The tensor.
        key: String,
        /// The files.
        files: [PathBuf; 2],
    },
    /// A tensor differs between ranks, and its name does not tell how to put it together.
    #[error("`{key}` differs between {} and {}, and its name does not tell how it is split", files[0].display(), files[1].display())]
    UnknownSplit {
        /// The tensor.
        key: String,
        /// The files.
        files: [PathBuf; 2],
    },
    /// The part of a tensor cannot be cut as its name says.
    #[error("{}: `{key}` has shape {shape:?}, which is not {wanted}", path.display())]
    UnfitPart {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shape of the part.
        shape: Vec<usize>,
        /// The value in its name.
        wanted: &'static str,
    },
    /// The parts of a tensor do not add up to what the arguments say.
    #[error("{}: the parts of `{key}` have {found} rows together; `{argument}` says {wanted}", folder.display())]
    OtherSize {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        key: String,
        /// Its rows.
        found: usize,
        /// The argument.
        argument: &'static str,
        /// The rows that it says.
        wanted: usize,
    },
    /// The layers of the stages are not those of the model.
    #[error("{}: its `{prefix}` are {found}; {wanted}", path.display())]
    Layers {
        /// The file, or the folder of all.
        path: PathBuf,
        /// The name of the list of layers.
        prefix: String,
        /// How many there are, or which.
        found: String,
        /// The expected value.
        wanted: String,
    },
}

impl MegatronFault {
    /// A hint for the user, where one helps.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingRank { .. } => Some("fetch or copy the whole folder again"),
            Self::NoSuchIteration { .. } => Some("name the folder of an iteration"),
            Self::Experts { .. } => {
                Some("export it to Hugging Face's form with the tools of the trainer that wrote it")
            }
            _ => None,
        }
    }
}

impl From<MegatronFault> for Error {
    fn from(fault: MegatronFault) -> Self {
        TrainerFault::Megatron(fault).into()
    }
}
