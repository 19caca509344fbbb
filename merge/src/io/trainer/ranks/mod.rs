//! One file of `torch.save` per process, with parts of tensors: `model_world_size_4_rank_0.pt` as verl writes them, and
//! other names that end in the number of a rank.

mod agreed;
mod names;
mod tensors;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pool::Pool;
use super::{Kind, Listing, Opened, Role, inside};
use crate::io::aliases;
use crate::io::assembled::Assembled;
use crate::io::read_at::ReadAt;
use crate::io::{Container, OpenOptions, SourceFile, SourceInfo, TensorEntry, TensorSource, torch};
use crate::{Error, Result, TrainerFault};

use names::RankName;
use tensors::Rank;

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    name: "model with one file per rank",
    is_in,
    role,
    open,
};

/// Missing ranks that an error names.
const NAMED: usize = 8;

fn is_in(listing: &Listing) -> bool {
    !names::families(&listing.files).is_empty()
}

/// Whether a file is of a rank, by its name.
pub(super) fn is_rank(name: &str) -> bool {
    RankName::of(name).is_some()
}

fn role(name: &str, _: &dyn Fn() -> Vec<String>) -> Option<Role> {
    let world = RankName::of(name)?.world?;
    (world > 1).then_some(Role::Part)
}

fn open(listing: &Listing, options: &OpenOptions) -> Result<Opened> {
    let folder = &listing.folder;
    let mut families = names::families(&listing.files);
    let Some((family, files)) = families.pop_first() else {
        return Err(TrainerFault::NoRanks {
            folder: folder.clone(),
        }
        .into());
    };
    if !families.is_empty() {
        let mut found = vec![family.to_string()];
        found.extend(families.keys().map(ToString::to_string));
        return Err(TrainerFault::SeveralWorlds {
            folder: folder.clone(),
            found,
        }
        .into());
    }
    let world = family.world.unwrap_or(files.len());
    require_all(listing, world, &files)?;
    let pool = Arc::new(Pool::default());
    let mut source_files = Vec::new();
    let mut ranks = Vec::new();
    for (rank, name) in files {
        let path = inside(folder, name)?;
        let file = pool.open(&path)?;
        source_files.push(SourceFile::of(&path, &file));
        let opened = torch::open_rank(&path, Box::new(file) as Box<dyn ReadAt>, rank)?;
        ranks.push(Rank::new(rank, path, opened));
    }
    let mut tensors = tensors::joined(folder, world, &ranks)?;
    let mut entries: Vec<TensorEntry> = (tensors.iter()).map(|t| t.entry.clone()).collect();
    let choice = torch::choose_root(&entries, options.root.as_deref()).map_err(|roots| {
        Error::UnknownRoot {
            path: folder.clone(),
            root: options.root.clone().unwrap_or_default(),
            roots,
        }
    })?;
    for ((entry, tensor), name) in entries.iter_mut().zip(&mut tensors).zip(choice.names) {
        entry.name.clone_from(&name);
        tensor.entry.name = name;
    }
    // Names of one tensor are so on every rank.
    let aliases = aliases::at_one_place(&entries, |index| tensors::place(&entries[index], &ranks));
    let first = ranks[0].source.info();
    let info = SourceInfo {
        path: folder.clone(),
        container: Container::Ranks,
        files: source_files,
        metadata: BTreeMap::new(),
        roots: choice.roots,
        root: choice.root,
        values: first.values.clone(),
        opaque: first.opaque.clone(),
    };
    let (tensors, sources) = agreed::with_copies(tensors, ranks);
    let source = Assembled::new(info, tensors.into_iter().map(Ok), sources, aliases)?;
    Ok(Opened {
        source: Box::new(source) as Box<dyn TensorSource>,
        notes: Vec::new(),
    })
}

/// Checks that the ranks 0.. of a world are there, each once.
fn require_all(listing: &Listing, world: usize, files: &BTreeMap<usize, &str>) -> Result<()> {
    if let Some((_, name)) = files.range(world..).next() {
        return Err(TrainerFault::RankBeyondWorld {
            path: listing.path(name),
            world,
        }
        .into());
    }
    if files.len() == world {
        return Ok(());
    }
    let missing = (0..world).filter(|rank| !files.contains_key(rank));
    Err(TrainerFault::MissingRanks {
        folder: listing.folder.clone(),
        world,
        n_missing: world - files.len(),
        ranks: missing.take(NAMED).collect(),
    }
    .into())
}
