//! The model that the ranks of Megatron are together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::names::{self, Cut, Part};
use super::rank::{Arguments, Rank};
use crate::io::assembled::{Assembled, Block, InPieces, Piece};
use crate::io::trainer::Opened;
use crate::io::{
    Aliases, Container, ObjectPath, OpenOptions, PathSegment, PlainValue, Root, SourceInfo,
    TensorEntry, TensorSource,
};
use crate::{Error, MegatronFault, Result, TensorInfo, ties};

/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 64 << 10;

/// Opens the model of `stages`, each with its tensor ranks. `shown` is the folder that users know it by.
pub(super) fn open(shown: &Path, stages: Vec<Vec<Rank>>, options: &OpenOptions) -> Result<Opened> {
    if let Some(root) = options.root.as_ref().filter(|root| !root.is_empty()) {
        return Err(Error::UnknownRoot {
            path: shown.into(),
            root: root.clone(),
            roots: vec![String::new()],
        });
    }
    let n_tensor_ranks = stages[0].len();
    let mut model = Whole::default();
    let ranks: Vec<&Rank> = stages.iter().flatten().collect();
    check_parts(&ranks)?;
    // Parts of a stage take turns: first the first part of each stage.
    for part in 0..stages[0][0].parts.len() {
        for stage in 0..stages.len() {
            let first = stage * n_tensor_ranks;
            let stage = Stage {
                ranks: &ranks[first..first + n_tensor_ranks],
                first_source: first,
                part,
            };
            model.add(&stage)?;
        }
    }
    model.check_layers(shown, stages[0][0].arguments.as_ref())?;
    model.join_copies(&ranks, stages.len())?;
    finish(shown, model, stages)
}

/// Checks that all stages have equally many parts.
fn check_parts(ranks: &[&Rank]) -> Result<()> {
    let wanted = ranks[0].parts.len();
    match ranks.iter().find(|rank| rank.parts.len() != wanted) {
        None => Ok(()),
        Some(rank) => Err(MegatronFault::MissingTensor {
            path: rank.path.clone(),
            key: format!("model{}", rank.parts.len().min(wanted)),
            other: ranks[0].path.clone(),
        }
        .into()),
    }
}

/// A part of the model, which the ranks of a stage share.
struct Stage<'a> {
    ranks: &'a [&'a Rank],
    /// The number of its first rank among the sources.
    first_source: usize,
    part: usize,
}

/// A tensor of a stage, over its ranks.
struct Split<'a> {
    name: &'a str,
    /// The tensor in the file of each rank, in their order.
    tensors: Vec<usize>,
    stage: &'a Stage<'a>,
}

impl Split<'_> {
    fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        let ranks = self.stage.ranks.iter().zip(&self.tensors);
        ranks.map(|(rank, tensor)| rank.info(*tensor))
    }

    fn unfit(&self, rank: usize, wanted: &'static str) -> Error {
        let info = self.stage.ranks[rank].info(self.tensors[rank]);
        MegatronFault::UnfitPart {
            path: self.stage.ranks[rank].path.clone(),
            key: self.name.into(),
            shape: info.shape.clone(),
            wanted,
        }
        .into()
    }

    /// The first rank whose tensor is not that of the first.
    fn other_than_first(&self, compared: Compared) -> Result<Option<usize>> {
        let first = (self.stage.ranks[0], self.tensors[0]);
        for (rank, &tensor) in self.tensors.iter().enumerate().skip(1) {
            if !is_same(first, (self.stage.ranks[rank], tensor), compared)? {
                return Ok(Some(rank));
            }
        }
        Ok(None)
    }

    fn files(&self, rank: usize) -> [std::path::PathBuf; 2] {
        [0, rank].map(|rank| self.stage.ranks[rank].path.clone())
    }

    /// How the tensor is split, by its name, the arguments of the run and what the ranks have.
    fn cut(&self) -> Result<Cut> {
        if self.tensors.len() == 1 {
            return Ok(Cut::Same);
        }
        let first = self.stage.ranks[0];
        let Some(part) = names::part(self.name) else {
            return match self.other_than_first(Compared::Wholly)? {
                None => Ok(Cut::Same),
                Some(rank) => Err(MegatronFault::UnknownSplit {
                    key: self.name.into(),
                    files: self.files(rank),
                }
                .into()),
            };
        };
        Ok(match part {
            Part::Whole => match self.other_than_first(Compared::InPlaces)? {
                None => Cut::Same,
                Some(rank) => {
                    return Err(MegatronFault::Differs {
                        key: self.name.into(),
                        files: self.files(rank),
                    }
                    .into());
                }
            },
            Part::Vocabulary => {
                let arguments = self.arguments()?;
                self.require_rows("padded_vocab_size", arguments.n_tokens, 1)?;
                Cut::Rows
            }
            Part::QueriesKeysValues if first.version < 1.0 => Cut::ThirdsOfRows,
            Part::KeysValues if first.version < 1.0 => Cut::HalvesOfRows,
            Part::QueriesKeysValues | Part::KeysValues | Part::Outputs => Cut::Rows,
            Part::FirstOfNetwork => {
                let arguments = self.arguments()?;
                let halves = if arguments.is_gated { 2 } else { 1 };
                self.require_rows("ffn_hidden_size", arguments.network_width, halves)?;
                match arguments.is_gated {
                    true => Cut::HalvesOfRows,
                    false => Cut::Rows,
                }
            }
            Part::Inputs => Cut::Columns,
        })
    }

    /// The arguments, without which a tensor is put together by guessing.
    fn arguments(&self) -> Result<&Arguments> {
        let rank = self.stage.ranks[0];
        let none = || MegatronFault::NoArguments {
            path: rank.path.clone(),
        };
        Ok(rank.arguments.as_ref().ok_or_else(none)?)
    }

    /// Compares the rows of all ranks together with an argument, if it is there.
    fn require_rows(
        &self,
        argument: &'static str,
        size: Option<usize>,
        times: usize,
    ) -> Result<()> {
        let rows = self
            .infos()
            .map(|info| info.shape.first().copied().unwrap_or(0));
        let found = rows.fold(0, usize::saturating_add);
        match size.map(|size| size.saturating_mul(times)) {
            Some(wanted) if wanted != found => Err(MegatronFault::OtherSize {
                folder: super::super::super::folder::folder_of(&self.stage.ranks[0].path).into(),
                key: self.name.into(),
                found,
                argument,
                wanted,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// The whole tensor and the pieces that it is made of.
    fn whole(&self) -> Result<(TensorInfo, Vec<Piece>)> {
        let cut = self.cut()?;
        let first = self.stage.ranks[0].info(self.tensors[0]).clone();
        let (axis, n_bands, wanted) = match cut {
            Cut::Same => {
                let start = vec![0; first.shape.len()];
                let source = self.stage.first_source;
                let piece =
                    Piece::whole(source, self.tensors[0], &first.shape, &first.shape, &start);
                return Ok((first, vec![piece]));
            }
            Cut::Rows => (0, 1, "split along rows"),
            Cut::HalvesOfRows => (0, 2, "two halves of rows"),
            Cut::ThirdsOfRows => (0, 3, "three thirds of rows"),
            Cut::Columns => (1, 1, "split along columns"),
        };
        let mut bands = Vec::with_capacity(self.tensors.len());
        for (rank, info) in self.infos().enumerate() {
            let size = info.shape.get(axis).copied();
            let size = size.filter(|size| size % n_bands == 0);
            bands.push(size.ok_or_else(|| self.unfit(rank, wanted))? / n_bands);
        }
        let total = bands.iter().copied().try_fold(0, usize::checked_add);
        let total = total.and_then(|total| total.checked_mul(n_bands));
        let mut shape = first.shape.clone();
        shape[axis] = total.ok_or_else(|| self.unfit(0, wanted))?;
        let mut pieces = Vec::new();
        for band in 0..n_bands {
            let mut to = band * (shape[axis] / n_bands);
            for (rank, info) in self.infos().enumerate() {
                let (mut size, mut start) = (info.shape.clone(), vec![0; info.shape.len()]);
                let mut from = start.clone();
                size[axis] = bands[rank];
                start[axis] = to;
                from[axis] = band * bands[rank];
                to += bands[rank];
                pieces.push(Piece {
                    size,
                    to: Block {
                        within: shape.clone(),
                        start,
                    },
                    source: self.stage.first_source + rank,
                    tensor: self.tensors[rank],
                    from: Block {
                        within: info.shape.clone(),
                        start: from,
                    },
                });
            }
        }
        let info = TensorInfo {
            dtype: first.dtype,
            shape,
        };
        Ok((info, pieces))
    }
}

/// The tensors of one name, of which later stages have copies.
struct Found {
    info: TensorInfo,
    pieces: Vec<Piece>,
}

/// The model as far as it is put together.
#[derive(Default)]
struct Whole {
    tensors: BTreeMap<String, Vec<Found>>,
    /// Layers of each list so far.
    n_layers: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl Whole {
    /// Adds a part of a stage.
    fn add(&mut self, stage: &Stage<'_>) -> Result<()> {
        let first = &stage.ranks[0].parts[stage.part];
        let layers = layers(stage.ranks[0], first.keys())?;
        for rank in &stage.ranks[1..] {
            let beyond = rank.parts[stage.part]
                .keys()
                .find(|name| !first.contains_key(*name));
            if let Some(key) = beyond {
                return Err(lacks(stage.ranks[0], key, rank));
            }
        }
        for name in first.keys() {
            if names::is_of_experts(name) {
                return Err(MegatronFault::Experts {
                    path: stage.ranks[0].path.clone(),
                    what: format!("`{name}` is of an expert"),
                }
                .into());
            }
            let tensors: Vec<usize> = (stage.ranks.iter())
                .map(|rank| {
                    let tensor = rank.parts[stage.part].get(name);
                    tensor
                        .copied()
                        .ok_or_else(|| lacks(rank, name, stage.ranks[0]))
                })
                .collect::<Result<_>>()?;
            let (info, pieces) = Split {
                name,
                tensors,
                stage,
            }
            .whole()?;
            let shown = match names::layer(name) {
                Some((list, number)) => {
                    let before = self.n_layers.get(list).copied().unwrap_or(0);
                    names::renumbered(name, list, number, before + number)
                }
                None => name.clone(),
            };
            self.tensors
                .entry(shown)
                .or_default()
                .push(Found { info, pieces });
        }
        for (list, n) in layers {
            *self.n_layers.entry(list).or_default() += n;
        }
        Ok(())
    }

    /// Compares the layers of all stages with the arguments, where there is one list of them.
    fn check_layers(&self, folder: &Path, arguments: Option<&Arguments>) -> Result<()> {
        let wanted = arguments.and_then(|arguments| arguments.n_layers);
        let mut lists = self.n_layers.iter();
        match (lists.next(), lists.next(), wanted) {
            (Some((list, &found)), None, Some(wanted)) if found != wanted => {
                Err(MegatronFault::Layers {
                    path: folder.into(),
                    prefix: list.clone(),
                    found: format!("{found} in all stages"),
                    wanted: format!("`args.num_layers` says {wanted}"),
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Makes one tensor of those that several stages have, which must be the same, and leaves out a head that is the
    /// embeddings: the last stage has a copy of them.
    fn join_copies(&mut self, ranks: &[&Rank], n_stages: usize) -> Result<()> {
        let is_tied = (ranks[0].arguments.as_ref()).is_some_and(|arguments| !arguments.is_untied);
        if is_tied && n_stages > 1 {
            let embeddings = self.tensors.iter();
            let embeddings = (embeddings.filter(|(name, _)| ties::is_embedding(name)))
                .map(|(name, _)| name.clone())
                .next();
            let heads: Vec<String> = (self.tensors.keys())
                .filter(|name| {
                    ties::is_head(name) || name.ends_with("word_embeddings_for_head.weight")
                })
                .cloned()
                .collect();
            for head in heads {
                let Some(of) = &embeddings else { break };
                let Some(copies) = self.tensors.remove(&head) else {
                    continue;
                };
                self.notes.push(format!(
                    "`{head}` of the last stage is left out: it is `{of}`, as the arguments say"
                ));
                self.tensors.entry(of.clone()).or_default().extend(copies);
            }
        }
        for (name, found) in &mut self.tensors {
            let Some((first, copies)) = found.split_first() else {
                continue;
            };
            for copy in copies {
                check_copy(name, ranks, first, copy)?;
            }
            found.truncate(1);
        }
        Ok(())
    }
}

/// Checks that two tensors of one name are the same, piece by piece.
fn check_copy(name: &str, ranks: &[&Rank], first: &Found, copy: &Found) -> Result<()> {
    let is_alike = first.info == copy.info && first.pieces.len() == copy.pieces.len();
    let pairs = first.pieces.iter().zip(&copy.pieces);
    for (one, other) in pairs {
        let (a, b) = (ranks[one.source], ranks[other.source]);
        if !is_alike || !is_same((a, one.tensor), (b, other.tensor), Compared::InPlaces)? {
            return Err(MegatronFault::Differs {
                key: name.into(),
                files: [a.path.clone(), b.path.clone()],
            }
            .into());
        }
    }
    Ok(())
}

/// How many layers each list of a stage has; they are numbered from 0 in each stage.
fn layers<'a>(
    rank: &Rank,
    names: impl Iterator<Item = &'a String>,
) -> Result<BTreeMap<String, usize>> {
    let mut seen: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (list, number) in names.filter_map(|name| names::layer(name)) {
        seen.entry(list).or_default().insert(number);
    }
    let mut counts = BTreeMap::new();
    for (list, numbers) in seen {
        let n = numbers.len();
        if let Some(last) = numbers.last().filter(|last| **last + 1 != n) {
            return Err(MegatronFault::Layers {
                path: rank.path.clone(),
                prefix: list.into(),
                found: format!("{n}, the last of them number {last}"),
                wanted: "a stage numbers its layers from 0".into(),
            }
            .into());
        }
        counts.insert(list.to_owned(), n);
    }
    Ok(counts)
}

fn lacks(rank: &Rank, key: &str, other: &Rank) -> Error {
    MegatronFault::MissingTensor {
        path: rank.path.clone(),
        key: key.into(),
        other: other.path.clone(),
    }
    .into()
}

/// How two tensors are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// At their beginning, in their middle and at their end.
    InPlaces,
    /// Byte by byte.
    Wholly,
}

/// Whether two tensors have the same shape, dtype and values.
fn is_same(a: (&Rank, usize), b: (&Rank, usize), compared: Compared) -> Result<bool> {
    let info = a.0.info(a.1);
    if info != b.0.info(b.1) {
        return Ok(false);
    }
    let (n, width) = (info.n_elements(), info.dtype.bytes_of(4).max(4) / 4);
    let step = COMPARED_BYTES / width;
    let at_end = n.saturating_sub(step);
    let starts: Vec<usize> = match compared {
        Compared::Wholly => (0..n).step_by(step).collect(),
        // Where elements share bytes, reading begins at a multiple of 4.
        Compared::InPlaces => vec![0, n / 2 / 4 * 4, at_end / 4 * 4],
    };
    for start in starts {
        let n_bytes = info.dtype.bytes_of(step.min(n - start));
        let (mut one, mut other) = (vec![0; n_bytes], vec![0; n_bytes]);
        a.0.source.read(a.1, start, &mut one)?;
        b.0.source.read(b.1, start, &mut other)?;
        if one != other {
            return Ok(false);
        }
    }
    Ok(true)
}

fn finish(shown: &Path, model: Whole, stages: Vec<Vec<Rank>>) -> Result<Opened> {
    let tensors: Vec<InPieces> = (model.tensors.into_iter())
        .filter_map(|(name, found)| {
            let Found { info, pieces } = found.into_iter().next()?;
            Some(InPieces {
                entry: TensorEntry::named(name, info),
                pieces,
            })
        })
        .collect();
    let infos = || tensors.iter().map(|tensor| &tensor.entry.info);
    let files = (stages.iter().flatten()).flat_map(|rank| rank.source.info().files.clone());
    let info = SourceInfo {
        path: shown.into(),
        container: Container::Megatron,
        files: files.collect(),
        metadata: BTreeMap::new(),
        roots: vec![Root {
            name: String::new(),
            n_tensors: tensors.len(),
            n_bytes: infos()
                .map(TensorInfo::n_bytes)
                .fold(0, u64::saturating_add),
        }],
        root: String::new(),
        values: values(&stages[0][0]),
        opaque: Vec::new(),
    };
    let sources: Vec<Box<dyn TensorSource>> = (stages.into_iter().flatten())
        .map(|rank| rank.source)
        .collect();
    Ok(Opened {
        source: Box::new(Assembled::new(
            info,
            tensors.into_iter().map(Ok),
            sources,
            Aliases::new(),
        )?),
        notes: model.notes,
    })
}

/// The first rank's record of the run.
fn values(rank: &Rank) -> Vec<(ObjectPath, PlainValue)> {
    let is_of_run = |path: &ObjectPath| match &path.0[..] {
        [_] => true,
        [PathSegment::Key(of), _] => of == "args",
        _ => false,
    };
    let values = rank.source.info().values.iter();
    values
        .filter(|(path, _)| is_of_run(path))
        .cloned()
        .collect()
}
