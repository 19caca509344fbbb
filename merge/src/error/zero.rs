//! Faults of checkpoints of DeepSpeed, with the rank and the tensor.

use std::path::PathBuf;

use super::{Error, TrainerFault};

/// A fault of a checkpoint of DeepSpeed, with the rank and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZeroFault {
    /// The file `latest` is not the name of a folder.
    #[error("{}: does not name a folder of the checkpoint", path.display())]
    BadLatest {
        /// The file.
        path: PathBuf,
    },
    /// The folder that `latest` names is not there.
    #[error("{}: `latest` names `{tag}`, which is not there; {}", folder.display(), tags_note(found))]
    NoSuchTag {
        /// The folder.
        folder: PathBuf,
        /// The name in it.
        tag: String,
        /// Folders that hold a checkpoint.
        found: Vec<String>,
    },
    /// A file holds a part that depends on another kind of parallelism.
    #[error("{}: holds {part}, which is not put together here", path.display())]
    OtherParallelism {
        /// The file.
        path: PathBuf,
        /// Its contents.
        part: &'static str,
    },
    /// Two files are of one rank.
    #[error("{}: `{}` and `{}` are both of rank {rank}", folder.display(), files[0], files[1])]
    TwoFiles {
        /// The folder.
        folder: PathBuf,
        /// The rank.
        rank: usize,
        /// The files.
        files: [String; 2],
    },
    /// The file of a rank is not there.
    #[error("{}: no file `{file}`: the {states} states of rank {rank} of {world} are missing", folder.display())]
    MissingRank {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
        /// Whose states they are: `model` or `optimizer`.
        states: &'static str,
        /// The rank.
        rank: usize,
        /// How many ranks there were.
        world: usize,
    },
    /// A file is of a run with another number of ranks.
    #[error("{}: is of a run of {found} ranks; the others are of {world}", path.display())]
    OtherWorld {
        /// The file.
        path: PathBuf,
        /// Its number of ranks.
        found: String,
        /// That of the others.
        world: usize,
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
    /// A rank has another number of groups than the model.
    #[error("{}: holds {found} groups of weights; {wanted} are described", path.display())]
    GroupCount {
        /// The file.
        path: PathBuf,
        /// Its groups.
        found: usize,
        /// Groups of the model.
        wanted: usize,
    },
    /// The parts of a group do not add up to its weights.
    #[error("{}: all ranks together hold {found} elements of group {group}, its {n_tensors} tensors have {wanted}", folder.display())]
    GroupSize {
        /// The folder.
        folder: PathBuf,
        /// The group, from 0.
        group: usize,
        /// Its tensors.
        n_tensors: usize,
        /// The number of elements found.
        found: usize,
        /// Elements of its tensors.
        wanted: usize,
    },
    /// The part of a rank does not add up to its share of the weights.
    #[error("{}: rank {rank} holds {found} elements of `{key}`, its share is {wanted}", path.display())]
    Share {
        /// The file.
        path: PathBuf,
        /// The rank.
        rank: usize,
        /// The tensor, or `all tensors`.
        key: String,
        /// The number of elements found.
        found: usize,
        /// Its share.
        wanted: usize,
    },
    /// A tensor has another shape than the file describes.
    #[error("{}: `{key}` has shape {found:?}, described is {wanted:?}", path.display())]
    OtherShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The described value.
        wanted: Vec<usize>,
    },
    /// A tensor is described, but its values are nowhere.
    #[error("{}: the values of `{key}` are in none of the files", path.display())]
    NoValues {
        /// The file that describes it.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// The contents that a file describes take more memory than those of any real model.
    #[error("{}: its names and shapes take more than {limit} bytes", path.display())]
    TooMuchMemory {
        /// The file.
        path: PathBuf,
        /// The part that is read.
        limit: usize,
    },
}

impl ZeroFault {
    /// A hint for the user, where one helps.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingRank { .. } => Some("fetch or copy the whole folder again"),
            Self::NoSuchTag { .. } => Some("name the folder of a tag"),
            Self::TwoFiles { .. } => Some("move the files of the other run away"),
            Self::OtherParallelism { .. } => Some(
                "load it with the trainer that wrote it, on as many ranks, and save the whole model from there",
            ),
            _ => None,
        }
    }
}

impl From<ZeroFault> for Error {
    fn from(fault: ZeroFault) -> Self {
        TrainerFault::Zero(fault).into()
    }
}

fn tags_note(found: &[String]) -> String {
    match found {
        [] => "no folder here holds a checkpoint".into(),
        found => format!("there are {}", found.join(", ")),
    }
}
