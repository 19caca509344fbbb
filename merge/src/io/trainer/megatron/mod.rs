//! Checkpoints of Megatron-LM, a file for each tensor rank and pipeline stage.
//!
//! A folder has a folder for each iteration, and `latest_checkpointed_iteration.txt` with the number of the last one.
//! An iteration has a folder `mp_rank_TT` or `mp_rank_TT_SSS` for tensor rank TT of stage SSS, with a file of torch:
//! the arguments of the run, and the rank's part of the model. The names of tensors tell how they were split
//! ([`names`]); the whole model is that of a run on one rank.

mod model;
mod names;
mod rank;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rank::{Arguments, Rank};

use super::pool::Pool;
use super::{Kind, Listing, Opened, Role, inside};
use crate::io::OpenOptions;
use crate::{Error, MegatronFault, Result, TrainerFault};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    name: NAME,
    is_in: |listing| file_of(listing).is_some() || has_ranks(listing) || is_root(listing),
    // The folder of a rank is opened if there is one rank.
    role: |name, _| FILES.contains(&name).then_some(Role::Whole),
    open,
};

const NAME: &str = "Megatron-LM checkpoint";

/// The name of a rank's file; the second where the optimizer is split over ranks and apart.
const FILES: [&str; 2] = ["model_optim_rng.pt", "model_rng.pt"];

/// The file with the number of the last iteration.
const TRACKER: &str = "latest_checkpointed_iteration.txt";

/// The longest content of that file.
const TRACKER_LIMIT_BYTES: u64 = 64;

/// A tensor rank of a stage.
type Place = (usize, usize);

/// The file of a rank in its folder.
fn file_of(listing: &Listing) -> Option<&'static str> {
    FILES.into_iter().find(|name| listing.has(name))
}

/// The rank that a folder is of, by its name: `mp_rank_01` or `mp_rank_01_002`, with a third number where experts are
/// split.
fn place(name: &str) -> Option<(Place, bool)> {
    let numbers = name.strip_prefix("mp_rank_")?.split('_');
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<usize>().ok()).flatten()
    };
    let numbers: Vec<usize> = numbers.map(number).collect::<Option<_>>()?;
    match numbers[..] {
        [tensor] => Some(((tensor, 0), false)),
        [tensor, stage] => Some(((tensor, stage), false)),
        [tensor, stage, _expert] => Some(((tensor, stage), true)),
        _ => None,
    }
}

/// Whether a folder is that of an iteration.
fn has_ranks(listing: &Listing) -> bool {
    let is_rank = |name: &String| {
        place(name).is_some()
            && FILES
                .iter()
                .any(|file| listing.path(name).join(file).is_file())
    };
    listing.folders.iter().any(is_rank)
}

/// Whether a folder is that of all iterations.
fn is_root(listing: &Listing) -> bool {
    let is_iteration = |name: &String| name.starts_with("iter_") || name == "release";
    listing.has(TRACKER) && listing.folders.iter().any(is_iteration)
}

fn open(listing: &Listing, options: &OpenOptions) -> Result<Opened> {
    if let Some(file) = file_of(listing) {
        return open_rank(listing, file, options);
    }
    if has_ranks(listing) {
        return open_iteration(listing, &listing.folder, options);
    }
    let iteration = latest(listing)?;
    let nothing = || MegatronFault::NoSuchIteration {
        folder: listing.folder.clone(),
        iteration: iteration.clone(),
    };
    if !listing.folders.contains(&iteration) {
        return Err(nothing().into());
    }
    let folder = inside(&listing.folder, &iteration)?;
    let within = Listing::of(&folder)?;
    let mut opened = match has_ranks(&within) {
        true => open_iteration(&within, &listing.folder, options)?,
        // Newer versions leave what other kinds read.
        false => super::open(&folder, options)?.ok_or_else(nothing)?,
    };
    let is_other = |name: &&String| name.starts_with("iter_") && **name != iteration;
    let others: Vec<&str> = listing
        .folders
        .iter()
        .filter(is_other)
        .map(String::as_str)
        .collect();
    let note = listing.passed_over(TRACKER, &iteration, &others);
    opened.notes.extend(note);
    Ok(opened)
}

/// The folder of the iteration that the file says.
fn latest(listing: &Listing) -> Result<String> {
    let bad = || {
        let path = listing.path(TRACKER);
        Error::from(MegatronFault::BadTracker { path })
    };
    let text = listing.short_text(TRACKER, TRACKER_LIMIT_BYTES)?;
    match text.ok_or_else(bad)?.as_str() {
        "release" => Ok("release".into()),
        number => {
            let number: u64 = number.parse().map_err(|_| bad())?;
            Ok(format!("iter_{number:07}"))
        }
    }
}

/// Opens the folder of a rank, if it has the whole model.
fn open_rank(listing: &Listing, file: &str, options: &OpenOptions) -> Result<Opened> {
    let rank = Rank::open(&inside(&listing.folder, file)?, &Arc::default())?;
    let (tensors, stages) = split_over(&rank, 1, 1);
    if tensors * stages > 1 {
        let real = listing.folder.canonicalize();
        let real = real.map_err(|source| Error::io("read", &listing.folder, source))?;
        return Err(TrainerFault::OnePart {
            path: listing.folder.clone(),
            kind: NAME,
            folder: super::super::folder::folder_of(&real).into(),
        }
        .into());
    }
    model::open(&listing.folder, vec![vec![rank]], options)
}

/// How a run split its model: as its arguments say, or else as the folders of its ranks do.
fn split_over(rank: &Rank, tensors: usize, stages: usize) -> (usize, usize) {
    match &rank.arguments {
        None => (tensors, stages),
        Some(Arguments {
            tensors, stages, ..
        }) => (*tensors, *stages),
    }
}

/// Opens the folder of an iteration. `shown` is the folder that users know the model by.
fn open_iteration(listing: &Listing, shown: &Path, options: &OpenOptions) -> Result<Opened> {
    let folders = ranks(listing)?;
    let (&first, first_folder) = folders.first_key_value().ok_or(TrainerFault::MissingFile {
        folder: listing.folder.clone(),
        file: "mp_rank_00".into(),
    })?;
    let seen = |number: fn(&Place) -> usize| folders.keys().map(number).max().unwrap_or(0) + 1;
    let seen = (seen(|place| place.0), seen(|place| place.1));
    if first != (0, 0) {
        return Err(missing(listing, (0, 0), seen));
    }
    let files = Arc::default();
    let first = open_file(listing, first_folder, &files)?;
    let split = split_over(&first, seen.0, seen.1);
    let (tensors, stages) = split;
    if let Some((_, name)) = folders
        .iter()
        .find(|((tensor, stage), _)| *tensor >= tensors || *stage >= stages)
    {
        return Err(MegatronFault::OtherWorld {
            path: listing.path(name),
            found: [seen.0, seen.1],
            wanted: [tensors, stages],
        }
        .into());
    }
    let mut first = Some(first);
    let mut opened = Vec::new();
    for stage in 0..stages {
        let mut ranks = Vec::new();
        for tensor in 0..tensors {
            let name = folders.get(&(tensor, stage));
            let name = name.ok_or_else(|| missing(listing, (tensor, stage), split))?;
            let rank = match first.take() {
                Some(rank) => rank,
                None => open_file(listing, name, &files)?,
            };
            let (found, stages_found) = split_over(&rank, tensors, stages);
            if (found, stages_found) != split {
                return Err(MegatronFault::OtherWorld {
                    path: rank.path,
                    found: [found, stages_found],
                    wanted: [tensors, stages],
                }
                .into());
            }
            ranks.push(rank);
        }
        opened.push(ranks);
    }
    model::open(shown, opened, options)
}

/// The folders of the ranks of an iteration.
fn ranks(listing: &Listing) -> Result<BTreeMap<Place, String>> {
    let mut folders: BTreeMap<Place, String> = BTreeMap::new();
    for name in &listing.folders {
        let Some((place, has_experts)) = place(name) else {
            continue;
        };
        if has_experts {
            return Err(MegatronFault::Experts {
                path: listing.path(name),
                what: "experts are split over ranks".into(),
            }
            .into());
        }
        if let Some(before) = folders.insert(place, name.clone()) {
            return Err(MegatronFault::TwoFolders {
                folder: listing.folder.clone(),
                ranks: [before, name.clone()],
            }
            .into());
        }
    }
    Ok(folders)
}

/// Opens the file in the folder of a rank.
fn open_file(listing: &Listing, rank: &str, files: &Arc<Pool>) -> Result<Rank> {
    let within = Listing::of(&listing.path(rank))?;
    let file = file_of(&within).unwrap_or(FILES[0]);
    let name = PathBuf::from(rank).join(file);
    Rank::open(&inside(&listing.folder, &name.to_string_lossy())?, files)
}

fn missing(listing: &Listing, (tensor, stage): Place, (tensors, stages): (usize, usize)) -> Error {
    MegatronFault::MissingRank {
        folder: listing.folder.clone(),
        tensor,
        stage,
        tensors,
        stages,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_ranks_are_known_by_their_names() {
        assert_eq!(place("mp_rank_01"), Some(((1, 0), false)));
        assert_eq!(place("mp_rank_01_002"), Some(((1, 2), false)));
        assert_eq!(place("mp_rank_01_002_003"), Some(((1, 2), true)));
        assert_eq!(place("mp_rank_"), None);
        assert_eq!(place("mp_rank_01_"), None);
        assert_eq!(place("mp_rank_1_2_3_4"), None);
        assert_eq!(place("mp_rank_+1"), None);
    }
}
