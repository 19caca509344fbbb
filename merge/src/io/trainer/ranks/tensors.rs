//! Which parts of which ranks make a tensor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::io::aliases::Aliases;
use crate::io::assembled::{InPieces, Piece};
use crate::io::torch::{Part, RankFile};
use crate::io::trainer::info_of;
use crate::io::{ObjectPath, PathSegment, TensorEntry, TensorInfo, TensorSource};
use crate::{Result, TrainerFault};

/// The file of a rank.
pub(super) struct Rank {
    /// Its number.
    rank: usize,
    path: PathBuf,
    /// Its tensors, and boxes of tensors.
    pub(super) source: Box<dyn TensorSource>,
    parts: HashMap<ObjectPath, Part>,
    order: Vec<ObjectPath>,
    /// Tensors of the file that are boxes of others.
    boxes: HashSet<usize>,
    aliases: Aliases,
    /// Names that have others.
    with_aliases: HashSet<String>,
}

impl Rank {
    pub(super) fn new(rank: usize, path: PathBuf, file: RankFile) -> Self {
        let RankFile { source, parts } = file;
        let boxes = parts.iter().flat_map(|(_, part)| &part.boxes);
        let aliases = source.aliases();
        let pairs = aliases.iter().flat_map(|(name, of)| [name, of]);
        Self {
            rank,
            path,
            boxes: boxes.map(|(index, _)| *index as usize).collect(),
            order: parts.iter().map(|(path, _)| path.clone()).collect(),
            with_aliases: pairs.cloned().collect(),
            parts: parts.into_iter().collect(),
            aliases,
            source,
        }
    }

    /// Whether the file holds a part of a tensor, or a copy that is one by the mesh.
    pub(super) fn holds_part(&self, key: &ObjectPath) -> bool {
        self.parts.contains_key(key)
    }

    fn info(&self, index: usize) -> &TensorInfo {
        &self.source.tensors()[index].info
    }
}

/// The part of a tensor that a rank holds.
#[derive(Clone, Copy)]
enum Held<'a> {
    /// All of it.
    Whole(usize),
    Part(&'a Part),
}

/// The ranks that hold something of a tensor, by their numbers among the files.
type Holders<'a> = Vec<(usize, Held<'a>)>;

/// Parts of a tensor, with the numbers of the files that hold them.
type Parts<'a> = Vec<(usize, &'a Part)>;

/// The tensors of all ranks. One that every rank holds as a whole is one piece, of the first rank.
///
/// # Errors
/// [`TrainerFault`] with the rank's file and the tensor if ranks contradict each other or hold too little.
pub(super) fn joined(folder: &Path, world: usize, ranks: &[Rank]) -> Result<Vec<InPieces>> {
    let mut order: Vec<&ObjectPath> = Vec::new();
    let mut holders: HashMap<&ObjectPath, Holders<'_>> = HashMap::new();
    for (number, rank) in ranks.iter().enumerate() {
        let whole = rank.source.tensors().iter().enumerate();
        let whole = whole.filter(|(index, _)| !rank.boxes.contains(index));
        let whole = whole.map(|(index, entry)| (&entry.path, Held::Whole(index)));
        let parts = (rank.order.iter()).map(|path| (path, Held::Part(&rank.parts[path])));
        for (path, held) in parts.chain(whole) {
            let known = holders.entry(path).or_insert_with(|| {
                order.push(path);
                Vec::new()
            });
            known.push((number, held));
        }
    }
    if order.is_empty() {
        return Err(TrainerFault::NoRanks {
            folder: folder.into(),
        }
        .into());
    }
    (order.into_iter())
        .map(|path| join(world, ranks, path, &holders[path]))
        .collect()
}

fn join(world: usize, ranks: &[Rank], key: &ObjectPath, holders: &Holders<'_>) -> Result<InPieces> {
    refuse_flat(&ranks[holders[0].0].path, key)?;
    let info = agreed_info(ranks, key, holders)?;
    let pieces = match holders[0].1 {
        Held::Whole(index) => {
            // Each rank holds a path once, in the order of the ranks.
            let mut there = holders.iter().map(|(number, _)| *number);
            let lacking = (0..ranks.len()).find(|number| there.next() != Some(*number));
            if let Some(lacking) = lacking {
                return Err(lacks(&ranks[lacking], key));
            }
            let zeros = vec![0; info.shape.len()];
            vec![Piece::whole(0, index, &info.shape, &info.shape, &zeros)]
        }
        Held::Part(_) => pieces_of(world, ranks, key, &info, holders)?,
    };
    Ok(InPieces {
        entry: TensorEntry {
            path: key.clone(),
            name: None,
            info,
        },
        pieces,
    })
}

/// Parameters that FSDP has flattened into one have no names.
fn refuse_flat(path: &Path, key: &ObjectPath) -> Result<()> {
    let is_flat = key.0.iter().any(|segment| match segment {
        PathSegment::Key(key) => key.split('.').any(|part| {
            let numbered = part.trim_end_matches(|last: char| last.is_ascii_digit());
            matches!(part, "_flat_param" | "flat_param") || numbered == "flat_param_"
        }),
        PathSegment::Index(_) => false,
    });
    match is_flat {
        false => Ok(()),
        true => Err(TrainerFault::FlatParameter {
            path: path.into(),
            key: key.to_string(),
        }
        .into()),
    }
}

fn lacks(rank: &Rank, key: &ObjectPath) -> crate::Error {
    TrainerFault::RankLacks {
        path: rank.path.clone(),
        key: key.to_string(),
        rank: rank.rank,
    }
    .into()
}

/// Shape and dtype of a tensor, on which all its holders agree.
fn agreed_info(ranks: &[Rank], key: &ObjectPath, holders: &Holders<'_>) -> Result<TensorInfo> {
    let mut agreed: Option<(TensorInfo, bool)> = None;
    for &(number, held) in holders {
        let rank = &ranks[number];
        let said = match held {
            Held::Whole(index) => vec![(rank.info(index).clone(), true)],
            Held::Part(part) => {
                let dtypes = part
                    .boxes
                    .iter()
                    .map(|(index, _)| rank.info(*index as usize).dtype);
                dtypes
                    .map(|dtype| {
                        let info =
                            info_of(dtype, &part.shape).ok_or_else(|| TrainerFault::TooLarge {
                                path: rank.path.clone(),
                                key: key.to_string(),
                                shape: part.shape.clone(),
                            })?;
                        Ok((info, false))
                    })
                    .collect::<Result<Vec<_>>>()?
            }
        };
        for (info, is_whole) in said {
            match &agreed {
                None => agreed = Some((info, is_whole)),
                Some((first, first_is_whole)) => {
                    if *first != info || *first_is_whole != is_whole {
                        return Err(TrainerFault::RanksDisagree {
                            path: rank.path.clone(),
                            key: key.to_string(),
                            found: described(&info, is_whole),
                            wanted: described(first, *first_is_whole),
                        }
                        .into());
                    }
                }
            }
        }
    }
    agreed
        .map(|(info, _)| info)
        .ok_or_else(|| lacks(&ranks[holders[0].0], key))
}

fn described(info: &TensorInfo, is_whole: bool) -> String {
    let kind = match is_whole {
        true => "a whole tensor",
        false => "a part of a tensor",
    };
    format!("{kind} of {} {:?}", info.dtype, info.shape)
}

/// The boxes of a tensor, each from the first rank that has it.
fn pieces_of(
    world: usize,
    ranks: &[Rank],
    key: &ObjectPath,
    info: &TensorInfo,
    holders: &Holders<'_>,
) -> Result<Vec<Piece>> {
    // Ranks that share a mesh hold the tensor together; another mesh holds a copy of it.
    let mut groups: BTreeMap<Option<Rc<[usize]>>, Parts<'_>> = BTreeMap::new();
    let mut first_group = None;
    for &(number, held) in holders {
        let (Held::Part(part), rank) = (held, &ranks[number]) else {
            continue;
        };
        let world_differs = part.world.is_some_and(|said| said != world)
            || part
                .ranks
                .as_ref()
                .is_some_and(|ranks| ranks.iter().any(|rank| *rank >= world));
        if part.rank != rank.rank || world_differs {
            return Err(TrainerFault::OtherRank {
                path: rank.path.clone(),
                key: key.to_string(),
                rank: part.rank,
                world: part
                    .world
                    .or_else(|| Some(1 + *part.ranks.as_ref()?.iter().max()?)),
            }
            .into());
        }
        first_group.get_or_insert_with(|| part.ranks.clone());
        groups
            .entry(part.ranks.clone())
            .or_default()
            .push((number, part));
    }
    for (members, group) in &groups {
        let there: HashSet<usize> = (group.iter().map(|(number, _)| ranks[*number].rank)).collect();
        let lacking = match members {
            Some(members) => members.iter().copied().find(|rank| !there.contains(rank)),
            None => (0..world).find(|rank| !there.contains(rank)),
        };
        if let Some(lacking) = lacking.and_then(|lacking| ranks.get(lacking)) {
            return Err(lacks(lacking, key));
        }
    }
    let group = first_group
        .and_then(|first| groups.remove(&first))
        .unwrap_or_default();
    let mut seen = HashSet::new();
    let mut pieces = Vec::new();
    for (number, part) in group {
        for (index, start) in &part.boxes {
            let size = &ranks[number].info(*index as usize).shape;
            if seen.insert((start.clone(), size.clone())) {
                pieces.push(Piece::whole(
                    number,
                    *index as usize,
                    size,
                    &info.shape,
                    start,
                ));
            }
        }
    }
    Ok(pieces)
}

/// The key of tensors of one place: the name that each rank's file gives to the place; `None` for a tensor that shares
/// its place with no other.
pub(super) fn place(entry: &TensorEntry, ranks: &[Rank]) -> Option<Vec<Option<String>>> {
    let key = entry.path.to_string();
    if !ranks.iter().any(|rank| rank.with_aliases.contains(&key)) {
        return None;
    }
    let names = ranks.iter().map(|rank| {
        let is_somewhere = match rank.parts.get(&entry.path) {
            Some(part) => {
                (part.boxes.iter()).any(|(index, _)| rank.info(*index as usize).n_elements() > 0)
            }
            None => true,
        };
        is_somewhere.then(|| rank.aliases.get(&key).unwrap_or(&key).clone())
    });
    Some(names.collect())
}
