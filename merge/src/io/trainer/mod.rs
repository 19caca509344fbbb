//! Models as trainers on many devices leave them: in pieces, over the files of a folder.
//!
//! A kind of such folders is a row of [`KINDS`] and a file or folder of this module. Its reader gives the pieces to
//! [`Assembled`](super::assembled::Assembled), which makes whole tensors of them as they are read.

mod distributed;
mod folder;
mod megatron;
mod pool;
mod ranks;
mod shards;
mod zero;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use distributed::walk_distributed;
pub(super) use folder::{Listing, inside};

use pool::Pool;

use super::content::{self, Content};
use super::folder::folder_of;
use super::torch::{self, Pickle};
use super::{OpenOptions, TensorInfo, TensorSource};
use crate::{DType, Error, Result, TrainerFault};

/// The role of a file of such a folder in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It describes the whole model, which it stands for.
    Whole,
    /// It holds a part of the model, and must not pass for all of it.
    Part,
}

/// A model that was opened.
pub(super) struct Opened {
    /// Its tensors.
    pub(super) source: Box<dyn TensorSource>,
    /// Facts that users should know of how it was found.
    pub(super) notes: Vec<String>,
}

/// A kind of folders that trainers leave.
pub(super) struct Kind {
    /// The users' name for it, after "a" or "an".
    pub(super) name: &'static str,
    /// Whether a folder holds such a model.
    pub(super) is_in: fn(&Listing) -> bool,
    /// The role of a file in such a model, by its name and, where that does not tell, by the names of the files around. `None` for a file that is a model of its own, or none of it.
    pub(super) role: fn(&str, &dyn Fn() -> Vec<String>) -> Option<Role>,
    /// Opens the model of a folder.
    pub(super) open: fn(&Listing, &OpenOptions) -> Result<Opened>,
}

/// All kinds.
const KINDS: [&Kind; 5] = [
    &distributed::KIND,
    &shards::KIND,
    &ranks::KIND,
    &zero::KIND,
    &megatron::KIND,
];

/// Beginnings of the names of files beside such models that are torch files, but hold no weights: what trainers keep of
/// a run and of each rank.
const BESIDE: [&str; 5] = ["meta.pt", "optim", "extra_state", "dataloader", "mp_rank_"];

/// Opens the model that trainers left in a folder; `None` if there is none.
///
/// # Errors
/// [`TrainerFault::SeveralKinds`] if there are several, and as the kind says.
pub(super) fn open(folder: &Path, options: &OpenOptions) -> Result<Option<Opened>> {
    let listing = Listing::of(folder)?;
    let Some(kind) = kind_of(&listing)? else {
        return Ok(None);
    };
    (kind.open)(&listing, options).map(Some)
}

/// Opens the model of the one folder within `folder` that trainers left a model in; `None` if there is none.
///
/// # Errors
/// [`TrainerFault::SeveralFolders`], and as [`open`].
pub(super) fn open_below(folder: &Path, options: &OpenOptions) -> Result<Option<Opened>> {
    let mut found = Vec::new();
    for name in Listing::of(folder)?.folders {
        // A link could lead to any folder of the machine.
        let below = folder.join(&name);
        if super::folder::is_other(&name) || below.is_symlink() {
            continue;
        }
        if let Some(kind) = kind_of(&Listing::of(&below)?)? {
            found.push((name, below, kind));
        }
    }
    let [(name, below, kind)] = &found[..] else {
        return match found.is_empty() {
            true => Ok(None),
            false => Err(TrainerFault::SeveralFolders {
                folder: folder.into(),
                folders: found.into_iter().map(|(name, ..)| name).collect(),
            }
            .into()),
        };
    };
    let mut opened = (kind.open)(&Listing::of(below)?, options)?;
    let note = format!(
        "{}: the model of this folder is the {} in `{name}`",
        folder.display(),
        kind.name
    );
    opened.notes.insert(0, note);
    Ok(Some(opened))
}

/// The folder that a file describes as a whole, if it does.
///
/// # Errors
/// [`TrainerFault::OnePart`] for a file that is a part of a model.
pub(super) fn folder_for(file: &Path) -> Result<Option<PathBuf>> {
    let name = file.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return Ok(None);
    };
    let folder = folder_of(file);
    let beside = || Listing::of(folder).map_or_else(|_| Vec::new(), |listing| listing.files);
    for kind in KINDS {
        match (kind.role)(name, &beside) {
            Some(Role::Whole) => return Ok(Some(folder.into())),
            Some(Role::Part) => {
                return Err(TrainerFault::OnePart {
                    path: file.into(),
                    kind: kind.name,
                    folder: folder.into(),
                }
                .into());
            }
            None => {}
        }
    }
    Ok(None)
}

/// Whether a file belongs to a model that trainers leave, by its name: as a part of it, or beside it.
pub(super) fn is_of_model(name: &str) -> bool {
    let is_part = |kind: &&Kind| (kind.role)(name, &Vec::new).is_some();
    KINDS.iter().any(is_part)
        || ranks::is_rank(name)
        || BESIDE.iter().any(|start| name.starts_with(start))
}

/// Opens a torch file, one of `files`, and gives its objects beside the tensors.
fn open_torch(path: &Path, files: &Arc<Pool>) -> Result<(Box<dyn TensorSource>, Pickle)> {
    let file = files.open(path)?;
    let looks_like = match content::of(path, &file)? {
        Content::Torch => {
            return torch::open_with_objects(path, Box::new(file), &OpenOptions::default());
        }
        other => other.looks_like(),
    };
    Err(Error::UnknownFormat {
        path: path.into(),
        looks_like,
    })
}

/// The users' name for the model that trainers left among files of these names, of a folder that is not of this machine.
#[cfg(feature = "remote")]
pub(super) fn name_among(names: &[String]) -> Option<&'static str> {
    let is_part = |kind: &&&Kind| {
        names
            .iter()
            .any(|name| (kind.role)(name, &|| names.to_vec()).is_some())
    };
    KINDS.iter().find(is_part).map(|kind| kind.name)
}

/// The users' name for the model that trainers left in a folder.
pub(super) fn name_in(folder: &Path) -> Result<Option<&'static str>> {
    Ok(kind_of(&Listing::of(folder)?)?.map(|kind| kind.name))
}

/// Shape and dtype of a tensor; `None` if its size is beyond all memory.
pub(super) fn info_of(dtype: DType, shape: &[usize]) -> Option<TensorInfo> {
    // Zero sizes are left out, so that the product of any of the axes fits as well.
    let mut sizes = shape.iter().filter(|size| **size > 0);
    sizes.try_fold(dtype.size_bytes(), |product, size| {
        (product.checked_mul(*size)).filter(|product| *product <= isize::MAX as usize)
    })?;
    Some(TensorInfo {
        dtype,
        shape: shape.to_vec(),
    })
}

/// The kind of model that a folder holds.
fn kind_of(listing: &Listing) -> Result<Option<&'static Kind>> {
    let found: Vec<&Kind> = (KINDS.into_iter())
        .filter(|kind| (kind.is_in)(listing))
        .collect();
    match found[..] {
        [] => Ok(None),
        [kind] => Ok(Some(kind)),
        _ => Err(Error::from(TrainerFault::SeveralKinds {
            folder: listing.folder.clone(),
            kinds: found.iter().map(|kind| kind.name).collect(),
        })),
    }
}
