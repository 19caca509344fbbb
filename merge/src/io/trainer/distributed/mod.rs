//! Checkpoints of `torch.distributed.checkpoint`: `.metadata`, a pickle that says where the pieces of every tensor are,
//! and files such as `__0_0.distcp`, in which each piece lies as `torch.save` writes a tensor.
//!
//! Source: `torch/distributed/checkpoint/{metadata,filesystem,planner_helpers}.py` of torch 2.2 to 2.9.

mod files;
mod metadata;

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// What becomes of values that are no tensors.
const LOADER: &str = "torch.load";

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
    let metadata = metadata::read(&path, &file)?;
    let mut source_files = vec![SourceFile::of(&path, &file)];
    let mut entries: Vec<TensorEntry> = (metadata.tensors.iter())
        .map(|tensor| TensorEntry {
            path: tensor.path.clone(),
            name: None,
            info: tensor.info.clone(),
        })
        .collect();
    let (roots, root) = name(&mut entries, options).map_err(|roots| Error::UnknownRoot {
        path: folder.clone(),
        root: options.root.clone().unwrap_or_default(),
        roots,
    })?;
    let (sources, places) = files::open(folder, &pool, &metadata, &entries)?;
    source_files.extend(
        sources
            .iter()
            .flat_map(|source| source.info().files.clone()),
    );
    let tensors = (metadata.tensors.iter())
        .zip(entries)
        .zip(places)
        .map(|((tensor, entry), places)| InPieces {
            pieces: (tensor.chunks.iter().zip(places))
                .filter_map(|(chunk, place)| {
                    let (source, item) = place?;
                    let shape = &tensor.info.shape;
                    Some(Piece::whole(source, item, &chunk.size, shape, &chunk.start))
                })
                .collect(),
            entry,
        })
        .collect();
    let info = SourceInfo {
        path: folder.clone(),
        container: Container::Distributed,
        files: source_files,
        metadata: BTreeMap::new(),
        roots,
        root,
        values: Vec::new(),
        opaque: (metadata.values.into_iter())
            .map(|path| OpaqueObject {
                path,
                callable: LOADER.to_owned(),
            })
            .collect(),
    };
    let source = Assembled::new(info, tensors, sources, Aliases::new())?;
    Ok(Opened {
        source: Box::new(source) as Box<dyn TensorSource>,
        notes: Vec::new(),
    })
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

/// Beginnings of keys under which trainers keep what is no weight, beside weights that have no key of their own.
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
