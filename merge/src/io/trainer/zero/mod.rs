//! Checkpoints of DeepSpeed's ZeRO, stages 1 to 3: what `zero_to_fp32.py` makes of them.
//!
//! A folder has a folder for each checkpoint, its *tag*, and a file `latest` with the name of one. A tag has the states
//! of the model ([`ModelStates`]) and the weights in full precision that each rank updates ([`OptimizerStates`]):
//! flat, without names, in the order that `param_shapes` of the former says.
//!
//! * Stages 1 and 2: the parameters of a group follow each other, and each rank has an equal part of the whole. The
//!   last part may lack what fills it up to a multiple of twice the number of ranks.
//! * Stage 3: each parameter is filled up to a multiple of the number of ranks and cut; the shares of a rank follow
//!   each other. Parameters that are not updated are cut likewise, in the states of the model of each rank.

mod files;
mod model;
mod row;
mod states;

use std::path::Path;
use std::sync::Arc;

use files::Files;
use model::Model;
use row::Row;
use states::{Described, ModelStates, OptimizerStates, Split};

use super::pool::Pool;
use super::{Kind, Listing, Opened, Role, inside, open_torch};
use crate::io::{Container, OpenOptions, TensorEntry, TensorSource};
use crate::{Error, Result, ZeroFault};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    name: "DeepSpeed checkpoint",
    is_in: |listing| files::are_in(listing) || is_root(listing),
    role: |name, beside| files::is_part(name, beside).then_some(Role::Part),
    open,
};

/// The file with the name of the tag that was saved last.
const LATEST: &str = "latest";

/// The longest name of a tag, in bytes: that of any file.
const TAG_LIMIT_BYTES: u64 = 255;

/// Whether a folder is that of all tags.
fn is_root(listing: &Listing) -> bool {
    listing.has(LATEST) && (listing.has("zero_to_fp32.py") || !tags(listing).is_empty())
}

/// Folders of a folder that hold a checkpoint. A link could lead to any folder of the machine.
fn tags(listing: &Listing) -> Vec<String> {
    let is_tag = |name: &&String| {
        let folder = listing.path(name);
        !folder.is_symlink() && Listing::of(&folder).is_ok_and(|within| files::are_in(&within))
    };
    listing.folders.iter().filter(is_tag).cloned().collect()
}

fn open(listing: &Listing, options: &OpenOptions) -> Result<Opened> {
    if files::are_in(listing) {
        return open_tag(listing, &listing.folder, options);
    }
    let tag = latest(listing)?;
    let found = tags(listing);
    let folder = match inside(&listing.folder, &tag) {
        Ok(folder) if folder.is_dir() => folder,
        Err(outside) if listing.folder.join(&tag).exists() || tag.contains("..") => {
            return Err(outside);
        }
        _ => {
            return Err(ZeroFault::NoSuchTag {
                folder: listing.folder.clone(),
                tag,
                found,
            }
            .into());
        }
    };
    let mut opened = open_tag(&Listing::of(&folder)?, &listing.folder, options)?;
    let others = found.iter().map(String::as_str).filter(|name| *name != tag);
    let others: Vec<&str> = others.collect();
    let note = listing.passed_over(LATEST, &tag, &others);
    opened.notes.extend(note);
    Ok(opened)
}

/// The tag that the file says.
fn latest(listing: &Listing) -> Result<String> {
    let tag = listing.short_text(LATEST, TAG_LIMIT_BYTES)?;
    let tag = tag.filter(|tag| !tag.is_empty() && !tag.contains('\0'));
    tag.ok_or_else(|| {
        let path = listing.path(LATEST);
        ZeroFault::BadLatest { path }.into()
    })
}

/// Opens the checkpoint of a tag. `shown` is the folder that users know the model by.
fn open_tag(listing: &Listing, shown: &Path, options: &OpenOptions) -> Result<Opened> {
    let files = Files::of(listing)?;
    let (at, pool) = (|name: &str| inside(&listing.folder, name), Arc::default());
    let Some((&first, first_name)) = files.optimizers.first_key_value() else {
        return without_optimizer(listing, shown, (&files, &pool), options);
    };
    let states = OptimizerStates::open(&at(first_name)?, &pool)?;
    let (world, split) = (states.world, states.split);
    if first != 0 {
        return Err(missing(listing, first_name, "optimizer", first, 0, world));
    }
    let mut optimizers = vec![states];
    for rank in 1..world {
        let name = (files.optimizers.get(&rank))
            .ok_or_else(|| missing(listing, first_name, "optimizer", 0, rank, world))?;
        let states = OptimizerStates::open(&at(name)?, &pool)?;
        if states.world != world {
            return Err(other_world(&states.path, states.world.to_string(), world));
        }
        if states.split != split {
            return Err(other_world(&states.path, "another kind".into(), world));
        }
        optimizers.push(states);
    }
    let beyond = files.optimizers.range(world..).next();
    if let Some((rank, name)) = beyond {
        let found = format!("{} or more", rank + 1);
        return Err(other_world(&listing.path(name), found, world));
    }
    let name = match split {
        Split::Groups => files.model.clone(),
        Split::Parameters => files.models.get(&0).cloned(),
    };
    let name = name.ok_or_else(|| match split {
        Split::Groups => no_file(
            listing,
            "mp_rank_00_model_states.pt".into(),
            "model",
            0,
            world,
        ),
        Split::Parameters => {
            let file = "zero_pp_rank_0_mp_rank_00_model_states.pt";
            no_file(listing, file.into(), "model", 0, world)
        }
    })?;
    let states = ModelStates::open(&at(&name)?, &pool)?;
    let others = match split {
        Split::Groups => Vec::new(),
        Split::Parameters => others(listing, (&files, &pool), &states, &name, world)?,
    };
    let mut model = Model::new(&listing.folder, states, others);
    match split {
        Split::Groups => model.add_groups(optimizers)?,
        Split::Parameters => model.add_parameters(optimizers)?,
    }
    Ok(Opened {
        source: model.finish(shown, Container::DeepSpeed, options)?,
        notes: Vec::new(),
    })
}

/// Opens the checkpoint of a run without ZeRO, whose model is whole.
fn without_optimizer(
    listing: &Listing,
    shown: &Path,
    (files, pool): (&Files, &Arc<Pool>),
    options: &OpenOptions,
) -> Result<Opened> {
    let Some(name) = files.model.as_ref().or(files.models.get(&0)) else {
        let (rank, name) = files.models.first_key_value().unzip();
        let (rank, name) = (rank.copied().unwrap_or(0), name.map_or("", String::as_str));
        return Err(missing(listing, name, "model", rank, 0, rank + 1));
    };
    let states = ModelStates::open(&inside(&listing.folder, name)?, pool)?;
    let world = files.models.len().max(1);
    let model = match (
        &states.groups,
        listing.folders.iter().any(|name| name == UNIVERSAL),
    ) {
        (None, _) => Model::new(&listing.folder, states, Vec::new()),
        (Some(groups), true) => {
            let parameters = universal(listing, pool, groups)?;
            let others = match files.model {
                Some(_) => Vec::new(),
                None => others(listing, (files, pool), &states, name, world)?,
            };
            let mut model = Model::new(&listing.folder, states, others);
            model.add_universal(parameters, files.model.is_none())?;
            model
        }
        (Some(_), false) => {
            let file = "zero_pp_rank_0_mp_rank_00_optim_states.pt";
            return Err(no_file(listing, file.into(), "optimizer", 0, world));
        }
    };
    Ok(Opened {
        source: model.finish(shown, Container::DeepSpeed, options)?,
        notes: Vec::new(),
    })
}

/// The folder of a tag with a folder for each parameter, whatever the number of ranks.
const UNIVERSAL: &str = "zero";

/// A parameter of a universal checkpoint: its file, and the tensor of it.
struct Universal {
    parameter: Described,
    source: Box<dyn TensorSource>,
    tensor: usize,
}

/// The parameters of a universal checkpoint.
fn universal(
    listing: &Listing,
    pool: &Arc<Pool>,
    groups: &[Vec<Described>],
) -> Result<Vec<Universal>> {
    let mut found = Vec::new();
    for parameter in groups.iter().flatten() {
        let path = inside(
            &listing.folder,
            &format!("{UNIVERSAL}/{}/fp32.pt", parameter.name),
        )?;
        let (source, _) = open_torch(&path, pool)?;
        let is_meant = |entry: &TensorEntry| entry.path.to_string() == "param";
        let tensor = source.tensors().iter().position(is_meant);
        let tensor = tensor.ok_or_else(|| ZeroFault::BadEntry {
            path,
            entry: "param".into(),
            found: "missing",
            wanted: "a tensor",
        })?;
        found.push(Universal {
            parameter: parameter.clone(),
            source,
            tensor,
        });
    }
    Ok(found)
}

/// The model states of the ranks after the first, which differ only in their shares of parameters that are not updated.
fn others(
    listing: &Listing,
    (files, pool): (&Files, &Arc<Pool>),
    states: &ModelStates,
    first: &str,
    world: usize,
) -> Result<Vec<ModelStates>> {
    let ranks = match states.frozen.is_empty() {
        true => 1..1,
        false => 1..world,
    };
    ranks
        .map(|rank| {
            let name = (files.models.get(&rank))
                .ok_or_else(|| missing(listing, first, "model", 0, rank, world))?;
            ModelStates::open(&inside(&listing.folder, name)?, pool)
        })
        .collect()
}

/// The fault of a rank without a file, whose name is that of another rank's with the number changed.
fn missing(
    listing: &Listing,
    like: &str,
    states: &'static str,
    from: usize,
    rank: usize,
    world: usize,
) -> Error {
    let (from, to) = (format!("pp_rank_{from}_"), format!("pp_rank_{rank}_"));
    no_file(listing, like.replace(&from, &to), states, rank, world)
}

fn no_file(
    listing: &Listing,
    file: String,
    states: &'static str,
    rank: usize,
    world: usize,
) -> Error {
    ZeroFault::MissingRank {
        folder: listing.folder.clone(),
        file,
        states,
        rank,
        world,
    }
    .into()
}

fn other_world(path: &Path, found: String, world: usize) -> Error {
    ZeroFault::OtherWorld {
        path: path.into(),
        found,
        world,
    }
    .into()
}

/// Flat weights of a group, over the ranks.
fn over_ranks(optimizers: &[OptimizerStates], group: usize, first_source: usize) -> Row {
    let flats = optimizers.iter().enumerate();
    Row::new(
        flats
            .filter_map(|(rank, states)| states.flats(first_source + rank).nth(group))
            .collect(),
    )
}
