//! Checkpoints of `torch.distributed.checkpoint`: `.metadata`, a pickle that says where the pieces of every tensor are,
//! and files such as `__0_0.distcp`, in which each piece lies as `torch.save` writes a tensor.
//!
//! Source: `torch/distributed/checkpoint/{metadata,filesystem,planner_helpers}.py` of torch 2.2 to 2.9.

mod files;
#[cfg(test)]
mod many;
mod metadata;
mod places;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use files::Pieces;
use metadata::Metadata;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::pool::Pool;
use super::{Kind, Listing, Opened, Role, inside};
use crate::io::assembled::{Assembled, InPieces, Piece};
use crate::io::{
    Aliases, Container, ObjectPath, OpaqueObject, OpenOptions, PathSegment, Root, SourceFile,
    SourceInfo, TensorEntry, TensorSource, torch,
};
use crate::{Error, Result};

pub use metadata::walk_distributed;

/// The file that describes the checkpoint.
const METADATA: &str = ".metadata";

/// Ending of the files with pieces.
const ENDING: &str = ".distcp";

/// The treatment of values that are no tensors.
const LOADER: &str = "torch.load";

/// Pieces of a model that are looked at as it is opened. Those of a model with more are looked at as they are read, for
/// each costs a read or two of its own.
const LOOKED_AT: usize = 1 << 14;

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    name: "torch distributed checkpoint",
    // Other programs, too, call a file `.metadata`.
    is_in: |listing| listing.files.iter().any(|name| name.ends_with(ENDING)),
    role,
    open,
};

fn role(name: &str, _: &dyn Fn() -> Vec<String>) -> Option<Role> {
    match name {
        METADATA => Some(Role::Whole),
        name if name.ends_with(ENDING) => Some(Role::Part),
        _ => None,
    }
}

fn open(listing: &Listing, options: &OpenOptions) -> Result<Opened> {
    let folder = &listing.folder;
    let path = inside(folder, METADATA)?;
    let pool = Arc::new(Pool::default());
    let file = pool.open(&path)?;
    let mut metadata = metadata::read(&path, &file)?;
    let mut source_files = vec![SourceFile::of(&path, &file)];
    let mut entries: Vec<TensorEntry> = (metadata.tensors.iter_mut())
        .map(|tensor| TensorEntry {
            path: std::mem::take(&mut tensor.path),
            name: None,
            info: tensor.info.clone(),
        })
        .collect();
    let (roots, root) = name(&mut entries, options).map_err(|roots| Error::UnknownRoot {
        path: folder.clone(),
        root: options.root.clone().unwrap_or_default(),
        roots,
    })?;
    let Metadata {
        tensors,
        values,
        files,
        names,
        places,
    } = metadata;
    let pieces = Pieces::open(&path, folder, &pool, &files, (names, places), &tensors)?;
    let pieces = Arc::new(pieces);
    source_files.extend(pieces.source_files());
    let info = SourceInfo {
        path: folder.clone(),
        container: Container::Distributed,
        files: source_files,
        metadata: BTreeMap::new(),
        roots,
        root,
        values: Vec::new(),
        opaque: (values.into_iter())
            .map(|path| OpaqueObject {
                path,
                callable: LOADER.to_owned(),
            })
            .collect(),
    };
    let mut looked_at = LookedAt::default();
    let tensors = tensors.into_iter().zip(entries).map(|(tensor, entry)| {
        let pieces = pieces.of(&path, &tensor)?;
        if entry.name.is_some() {
            looked_at.add(&pieces);
        }
        Ok(InPieces { entry, pieces })
    });
    let source = Assembled::new(info, tensors, vec![pieces.clone()], Aliases::new())?;
    looked_at.look(&pieces)?;
    Ok(Opened {
        source: Box::new(source) as Box<dyn TensorSource>,
        notes: Vec::new(),
    })
}

/// The pieces of the model, if they are few.
#[derive(Default)]
struct LookedAt {
    pieces: Vec<(u32, Box<[usize]>)>,
    n: usize,
}

impl LookedAt {
    fn add(&mut self, pieces: &[Piece]) {
        self.n += pieces.len();
        match self.n <= LOOKED_AT {
            true => {
                let pieces = pieces.iter();
                self.pieces
                    .extend(pieces.map(|piece| (piece.tensor as u32, piece.size.clone().into())));
            }
            false => self.pieces = Vec::new(),
        }
    }

    /// Looks at the pieces; at none if there are too many.
    fn look(&self, pieces: &Pieces) -> Result<()> {
        (self.pieces.par_iter()).try_for_each(|(row, size)| pieces.opened(*row, size).map(drop))
    }
}

/// Chooses the root as for torch files and names its tensors. The state of an optimizer that stands among the weights
/// is none of them, unless the user asked for that root. `Err` holds the roots if there is none of the wanted name.
fn name(
    entries: &mut [TensorEntry],
    options: &OpenOptions,
) -> std::result::Result<(Vec<Root>, String), Vec<String>> {
    let mut choice = torch::choose_root(entries, options.root.as_deref())?;
    let depth = entries.iter().zip(&choice.names).find_map(|(entry, name)| {
        let depth_of_name = name.as_ref()?;
        (0..=entry.path.0.len())
            .find(|depth| ObjectPath(entry.path.0[*depth..].to_vec()).to_string() == *depth_of_name)
    });
    for (entry, name) in entries.iter_mut().zip(choice.names) {
        let within = &entry.path.0[depth.unwrap_or(0).min(entry.path.0.len())..];
        entry.name = name.filter(|_| options.root.is_some() || !is_of_run(within));
    }
    if let Some(root) = choice.roots.first_mut() {
        let named = || entries.iter().filter(|entry| entry.name.is_some());
        root.n_tensors = named().count();
        root.n_bytes = (named().map(|entry| entry.info.n_bytes())).fold(0, u64::saturating_add);
    }
    Ok((choice.roots, choice.root))
}

/// Beginnings of keys under which trainers keep other things than weights, beside weights that have no key of their own.
const STATES: [&str; 7] = [
    "optim",
    "lr_sched",
    "scheduler",
    "scaler",
    "rng_state",
    "dataloader",
    "train_state",
];

/// Whether a path within the weights is of the state of a run: under a key of its own, or, for an optimizer, flattened
/// into one.
fn is_of_run(path: &[PathSegment]) -> bool {
    match path {
        [PathSegment::Key(key)] => ["optim.", "optimizer.", "optimizers."]
            .iter()
            .any(|start| key.starts_with(start)),
        [PathSegment::Key(key), _, ..] => STATES.iter().any(|start| key.starts_with(start)),
        _ => false,
    }
}
