//! Norms, cosines, signs and subspaces of the task vectors of models.

use std::collections::BTreeMap;

use serde::Serialize;

use super::subspaces::{self, Leading};
use super::sums::{self, Sums, place};
use crate::distance::Skipped;
use crate::methods::is_table;
use crate::{
    BlockId, Checkpoint, Error, Layout, ParamKind, Progress, Result, Role, Slot, TensorInfo,
};

/// The measures and their settings.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Singular directions of each matrix that are compared; 0 compares none.
    pub rank: usize,
}

/// The task vector of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// The name of the model.
    pub name: String,
    /// Length of its task vector.
    pub norm: f64,
    /// The same over the length of the base.
    pub relative_distance: f64,
    /// Share of the elements that it changes.
    pub changed: f64,
    /// Share of the squares of its matrices' task vectors that the leading directions hold.
    pub in_leading: Option<f64>,
}

/// Two task vectors.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairFacts {
    /// The models.
    pub models: [String; 2],
    /// Cosine of the angle between them; `None` where one is zero.
    pub cosine: Option<f64>,
    /// Share of the elements that both change which they change in opposite directions.
    pub opposite: Option<f64>,
    /// Mean overlap of the leading left singular vectors, each matrix by its elements.
    pub overlap: Option<f64>,
}

/// The relations of all models' task vectors over some tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// Elements.
    pub n_elements: u64,
    /// Length of each model's task vector over that of the base.
    pub relative: Vec<f64>,
    /// Mean cosine of all pairs.
    pub cosine: Option<f64>,
    /// Share of elements that both of a pair change which they change in opposite directions, over all pairs.
    pub opposite: Option<f64>,
    /// The part of all task vectors' magnitudes that their sum loses: 0 where they never oppose each other, 1 where
    /// nothing is left.
    pub cancelled: Option<f64>,
    /// Elements that several models change, of those that some model changes.
    pub shared: Option<f64>,
    /// Mean overlap of the leading left singular vectors of all pairs, each matrix by its elements.
    pub overlap: Option<f64>,
    /// The same for spaces that have nothing to do with each other.
    pub overlap_by_chance: Option<f64>,
}

/// The tensors of one block, or those outside the blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockFacts {
    /// The stack of the block, where the model has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<&'static str>,
    /// The block.
    pub block: Option<usize>,
    /// Its numbers.
    #[serde(flatten)]
    pub shares: Shares,
}

/// A matrix, and what two models do to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixFacts {
    /// Its name.
    pub key: String,
    /// The numbers of the models, from 0.
    pub pair: [usize; 2],
    /// Cosines of the principal angles between the leading left singular vectors, the largest first.
    pub cosines: Vec<f64>,
    /// Mean of their squares.
    pub overlap: f64,
}

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// Singular directions of each matrix that were compared.
    pub rank: usize,
    /// Each model.
    pub models: Vec<ModelFacts>,
    /// Each pair.
    pub pairs: Vec<PairFacts>,
    /// All tensors.
    pub all: Shares,
    /// Each block, those outside the blocks first.
    pub blocks: Vec<BlockFacts>,
    /// Each matrix and pair.
    pub matrices: Vec<MatrixFacts>,
    /// The shorter side of the smallest matrix.
    pub least_side: Option<usize>,
    /// Tensors that were not compared.
    pub skipped: Vec<Skipped>,
}

/// A tensor that all have.
struct Compared<'a> {
    key: &'a str,
    info: &'a TensorInfo,
    slot: Slot,
}

impl Compared<'_> {
    /// Rows and columns, if it is a matrix to methods that decompose task vectors.
    fn matrix(&self) -> Option<(usize, usize)> {
        match *self.info.shape.as_slice() {
            [rows, columns]
                if self.slot.kind == ParamKind::LinearWeight
                    && !is_table(self.key)
                    && rows * columns > 0 =>
            {
                Some((rows, columns))
            }
            _ => None,
        }
    }
}

/// Overlaps of matrices, each by its elements.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    by_chance: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, found: &subspaces::Common, weight: f64) {
        self.sum += weight * found.overlap;
        self.by_chance += weight * found.by_chance.min(1.0);
        self.weight += weight;
    }

    fn of(&self, sum: f64) -> Option<f64> {
        (self.weight > 0.0).then(|| sum / self.weight)
    }
}

/// Measures the task vectors of models against their base. `layout` is that of the base.
///
/// # Errors
/// [`Error::NothingToCompare`] if no tensor of floats is in all of them; [`Error::CompareShapes`];
/// [`Error::NonFiniteInput`]; when a file cannot be read, and [`Error::Cancelled`].
pub fn measure(
    base: &Checkpoint,
    models: &[(String, &Checkpoint)],
    layout: &dyn Layout,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Facts> {
    let checkpoints: Vec<&Checkpoint> = models.iter().map(|(_, model)| *model).collect();
    let (tensors, skipped) = compared(base, &checkpoints, layout)?;
    let listed: Vec<(&str, &TensorInfo)> = tensors.iter().map(|of| (of.key, of.info)).collect();
    let sums = sums::each(base, &checkpoints, &listed, progress)?;
    let n = models.len();
    let stacks = &layout.dimensions().stacks;
    let mut all = Sums::default();
    let mut blocks: BTreeMap<Option<BlockId>, (Sums, Mean)> = BTreeMap::new();
    for (tensor, sums) in tensors.iter().zip(&sums) {
        all.add(sums);
        blocks.entry(tensor.slot.block).or_default().0.add(sums);
    }
    let (mut of_pairs, mut of_all) = (vec![Mean::default(); n * (n + 1) / 2], Mean::default());
    let (mut matrices, mut held) = (Vec::new(), vec![(0.0, 0.0); n]);
    let shapes = tensors.iter().filter_map(Compared::matrix);
    let least_side = shapes.map(|(rows, columns)| rows.min(columns)).min();
    let wanted: Vec<_> = match options.rank {
        0 => Vec::new(),
        _ => tensors.iter().zip(&sums).collect(),
    };
    progress.start_items("subspaces", wanted.len() as u64);
    for (tensor, sums) in wanted {
        progress.advance(1);
        let Some(size) = tensor.matrix() else {
            continue;
        };
        let mut spaces: Vec<Leading> = Vec::with_capacity(n);
        for (index, model) in checkpoints.iter().enumerate() {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let space = subspaces::leading(base, model, tensor.key, size, options.rank)?;
            let energy = sums.products[place(index, index)];
            held[index].0 += space.share.unwrap_or(0.0) * energy;
            held[index].1 += energy;
            spaces.push(space);
        }
        for j in 0..n {
            for i in 0..j {
                let Some(found) = subspaces::common(tensor.key, &spaces[i], &spaces[j])? else {
                    continue;
                };
                let weight = (size.0 * size.1) as f64;
                of_pairs[place(i, j)].add(&found, weight);
                of_all.add(&found, weight);
                let of_block = blocks.entry(tensor.slot.block).or_default();
                of_block.1.add(&found, weight);
                matrices.push(MatrixFacts {
                    key: tensor.key.to_owned(),
                    pair: [i, j],
                    cosines: found.cosines,
                    overlap: found.overlap,
                });
            }
        }
    }
    progress.finish();
    Ok(Facts {
        rank: options.rank,
        models: (models.iter().enumerate())
            .map(|(index, (name, _))| ModelFacts {
                name: name.clone(),
                norm: all.products[place(index, index)].sqrt(),
                relative_distance: relative(&all, index),
                changed: all.both[place(index, index)] as f64 / all.n.max(1) as f64,
                in_leading: (held[index].1 > 0.0).then(|| held[index].0 / held[index].1),
            })
            .collect(),
        pairs: (0..n)
            .flat_map(|j| (0..j).map(move |i| (i, j)))
            .map(|(i, j)| PairFacts {
                models: [i, j].map(|index| models[index].0.clone()),
                cosine: cosine(&all, i, j),
                opposite: share(all.opposite[place(i, j)], all.both[place(i, j)]),
                overlap: of_pairs[place(i, j)].of(of_pairs[place(i, j)].sum),
            })
            .collect(),
        all: shares(&all, n, &of_all),
        blocks: (blocks.iter())
            .map(|(block, (sums, mean))| BlockFacts {
                stack: block.and_then(|block| {
                    let stack = stacks.get(usize::from(block.stack))?;
                    (stacks.len() > 1).then_some(stack.name)
                }),
                block: block.map(|block| block.index),
                shares: shares(sums, n, mean),
            })
            .collect(),
        matrices,
        least_side,
        skipped,
    })
}

/// The tensors of floats that all have.
fn compared<'a>(
    base: &'a Checkpoint,
    models: &[&Checkpoint],
    layout: &dyn Layout,
) -> Result<(Vec<Compared<'a>>, Vec<Skipped>)> {
    let (mut tensors, mut skipped) = (Vec::new(), Vec::new());
    let mut skip = |key: &str, why: &'static str| {
        let key = key.to_owned();
        skipped.push(Skipped { key, why });
    };
    for (key, info) in base.tensors() {
        let slot = match layout.role(key)? {
            Role::Shared(slot) | Role::Routing(slot) => slot,
            Role::Expert { slot, .. } => slot,
            Role::Alias { .. } => {
                skip(key, "the same tensor as another");
                continue;
            }
            Role::Derived => {
                skip(key, "rebuilt by loaders");
                continue;
            }
        };
        let found: Option<Vec<&TensorInfo>> = models.iter().map(|model| model.get(key)).collect();
        let Some(found) = found else {
            skip(key, "not in all models");
            continue;
        };
        if found.iter().any(|found| !found.dtype.is_float()) || !info.dtype.is_float() {
            skip(key, "not a floating point tensor");
            continue;
        }
        for (found, model) in found.iter().zip(models) {
            if found.shape != info.shape {
                return Err(Error::CompareShapes {
                    path: model.path().into(),
                    key: key.to_owned(),
                    found: found.shape.clone(),
                    expected: info.shape.clone(),
                });
            }
        }
        tensors.push(Compared { key, info, slot });
    }
    let mut added: Vec<&str> = (models.iter())
        .flat_map(|model| model.tensors().map(|(key, _)| key))
        .filter(|key| base.get(key).is_none())
        .collect();
    added.sort_unstable();
    added.dedup();
    for key in added {
        skip(key, "not in the base");
    }
    match tensors.is_empty() {
        true => Err(Error::NothingToCompare {
            path: base.path().into(),
            why: "no tensor of floats is in the base and in all models",
        }),
        false => Ok((tensors, skipped)),
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn relative(sums: &Sums, index: usize) -> f64 {
    let norm = sums.products[place(index, index)].sqrt();
    match sums.base > 0.0 {
        true => norm / sums.base.sqrt(),
        false if norm == 0.0 => 0.0,
        false => f64::INFINITY,
    }
}

fn cosine(sums: &Sums, i: usize, j: usize) -> Option<f64> {
    let norms = (sums.products[place(i, i)] * sums.products[place(j, j)]).sqrt();
    (norms > 0.0).then(|| (sums.products[place(i, j)] / norms).clamp(-1.0, 1.0))
}

fn shares(sums: &Sums, n: usize, mean: &Mean) -> Shares {
    let pairs = || (0..n).flat_map(|j| (0..j).map(move |i| (i, j)));
    let cosines: Vec<f64> = pairs().filter_map(|(i, j)| cosine(sums, i, j)).collect();
    let total = |of: &[u64]| pairs().map(|(i, j)| of[place(i, j)]).sum::<u64>();
    Shares {
        n_elements: sums.n,
        relative: (0..n).map(|index| relative(sums, index)).collect(),
        cosine: (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64),
        opposite: share(total(&sums.opposite), total(&sums.both)),
        cancelled: (sums.magnitudes > 0.0)
            .then(|| (1.0 - sums.of_sum / sums.magnitudes).clamp(0.0, 1.0)),
        shared: share(sums.several, sums.any),
        overlap: mean.of(mean.sum),
        overlap_by_chance: mean.of(mean.by_chance),
    }
}
