//! Running the comparison.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize, Serializer};

use super::pairs::{Comparison, Operand, Pair};
use super::sums::{SignSums, Sums};
use super::threshold::{Selection, Tally};
use super::{Keep, Metric};
use crate::spans::{self, RUN_ELEMENTS, Run, Span};
use crate::{BlockId, Error, Progress, Result};

/// The tensors that are pooled into one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grain {
    /// Each tensor by itself.
    Tensor,
    /// The tensors of one module in one block, e.g. weight and bias of `mlp.fc1` in block 3.
    Cell,
    /// The tensors of one module in all blocks.
    Module,
    /// All tensors of one block.
    Block,
    /// All tensors.
    All,
}

/// The settings of a measurement.
#[derive(Clone, Debug)]
pub struct DistanceOptions {
    /// The metrics, in the order wanted.
    pub metrics: Vec<Metric>,
    /// The pools, in the order wanted.
    pub grains: Vec<Grain>,
}

/// The distances of one comparison's tensors that are pooled together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// The compared sides.
    pub comparison: Comparison,
    /// The pool.
    pub grain: Grain,
    /// The stack of the block, where the model has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<&'static str>,
    /// The block, where the grain has one; `None` also for tensors outside the blocks.
    pub block: Option<usize>,
    /// The module, where the grain has one.
    pub module: Option<String>,
    /// The slot, where the grain is a single tensor.
    pub key: Option<String>,
    /// Elements on either side.
    pub n_elements: u64,
    /// A value per metric in the order asked for; `None` where it is undefined.
    #[serde(serialize_with = "as_map")]
    pub values: Vec<(Metric, Option<f64>)>,
}

fn as_map<S: Serializer>(
    values: &[(Metric, Option<f64>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(metric, value)| (metric, value)))
}

/// Block (with the name of its stack, where there are several), module and key that a pair is pooled under:
/// those that the grain tells apart.
type Scope<'a> = (
    Comparison,
    Option<(BlockId, Option<&'static str>)>,
    Option<&'a str>,
    Option<&'a str>,
);

impl Grain {
    fn scope<'a>(self, pair: &'a Pair<'_>) -> Scope<'a> {
        let (block, module, key) = (
            pair.slot.block.map(|block| (block, pair.stack)),
            Some(pair.slot.module.as_str()),
            Some(pair.slot.key.as_str()),
        );
        let (block, module, key) = match self {
            Self::Tensor => (block, module, key),
            Self::Cell => (block, module, None),
            Self::Module => (None, module, None),
            Self::Block => (block, None, None),
            Self::All => (None, None, None),
        };
        (pair.comparison, block, module, key)
    }
}

/// Measures pairs, pooled by each of the grains in turn. Within a grain the order is that of
/// comparison, block, module and name. The values do not depend on the number of threads.
///
/// # Errors
/// [`Error::NonFiniteInput`] for a NaN or an infinity, when a file cannot be read, and
/// [`Error::Cancelled`].
pub fn measure(
    pairs: &[Pair<'_>],
    options: &DistanceOptions,
    progress: &dyn Progress,
) -> Result<Vec<Distance>> {
    let keeps: Vec<Keep> = options
        .metrics
        .iter()
        .filter_map(|metric| match metric {
            Metric::Tssd(keep) => Some(*keep),
            _ => None,
        })
        .collect();
    let all: Vec<&Pair<'_>> = pairs.iter().collect();
    let sums = each_pair(&all, progress)?;
    if !keeps.is_empty() {
        // Two passes are the least: one that finds the thresholds, one that applies them.
        let n_passes = 2 * options.grains.len() as u64;
        progress.start("truncated distances", n_passes * n_bytes(&all));
    }
    let mut distances = Vec::new();
    for &grain in &options.grains {
        let mut scopes: BTreeMap<Scope<'_>, Vec<usize>> = BTreeMap::new();
        for (index, pair) in pairs.iter().enumerate() {
            scopes.entry(grain.scope(pair)).or_default().push(index);
        }
        for ((comparison, block, module, key), members) in scopes {
            let mut pooled = Sums::default();
            members.iter().for_each(|&index| pooled.add(&sums[index]));
            let members: Vec<&Pair<'_>> = members.iter().map(|&index| &pairs[index]).collect();
            let mut truncated = truncated(&members, &keeps, pooled.n, progress)?.into_iter();
            let values = options.metrics.iter().map(|&metric| match metric {
                Metric::Tssd(_) => (metric, truncated.next()),
                _ => (metric, pooled.value(metric)),
            });
            distances.push(Distance {
                comparison,
                grain,
                stack: block.and_then(|(_, stack)| stack),
                block: block.map(|(block, _)| block.index),
                module: module.map(str::to_owned),
                key: key.map(str::to_owned),
                n_elements: pooled.n,
                values: values.collect(),
            });
        }
    }
    if !keeps.is_empty() {
        progress.finish();
    }
    Ok(distances)
}

/// Runs of the two sides and the base, decoded, and measured from the base.
#[derive(Default)]
struct PairRun {
    left: Run,
    right: Run,
    base: Run,
}

impl PairRun {
    /// Reads a run of a pair and measures it from its base.
    fn load(&mut self, pair: &Pair<'_>, span: Span) -> Result<(&[f64], &[f64])> {
        let left = load(&mut self.left, &pair.left, span)?;
        let right = load(&mut self.right, &pair.right, span)?;
        if let Some(base) = &pair.base {
            let base = load(&mut self.base, base, span)?;
            for ((a, b), base) in left.iter_mut().zip(right.iter_mut()).zip(base) {
                *a -= *base;
                *b -= *base;
            }
        }
        Ok((left, right))
    }
}

fn load<'r>(run: &'r mut Run, operand: &Operand<'_>, span: Span) -> Result<&'r mut [f64]> {
    let dtype = operand.info.dtype;
    run.read_named(operand.checkpoint, &operand.key, dtype, span)?;
    let values = run.decode(&operand.key, dtype)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::NonFiniteInput {
            path: operand.checkpoint.path().into(),
            key: operand.key.clone(),
            element: span.first + at,
        }),
    }
}

fn cut(pairs: &[&Pair<'_>]) -> Vec<Span> {
    spans::cut(pairs.iter().map(|pair| pair.n_elements()), RUN_ELEMENTS)
}

fn n_bytes(pairs: &[&Pair<'_>]) -> u64 {
    let bytes = |pair: &&Pair<'_>| pair.n_bytes(pair.n_elements());
    pairs.iter().map(bytes).sum()
}

/// Sums of each pair.
fn each_pair(pairs: &[&Pair<'_>], progress: &dyn Progress) -> Result<Vec<Sums>> {
    let runs = cut(pairs);
    progress.start("distances", n_bytes(pairs));
    let parts = spans::map(&runs, progress, PairRun::default, |run, span| {
        let pair = pairs[span.item];
        let (left, right) = run.load(pair, span)?;
        let sums = Sums::of(left, right);
        progress.advance(pair.n_bytes(span.len));
        Ok(sums)
    });
    progress.finish();
    let mut sums = vec![Sums::default(); pairs.len()];
    for (span, part) in runs.iter().zip(parts?) {
        sums[span.item].add(&part);
    }
    Ok(sums)
}

/// TSSD of all pairs concatenated, one value per share.
fn truncated(
    pairs: &[&Pair<'_>],
    keeps: &[Keep],
    n: u64,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    if keeps.is_empty() {
        return Ok(Vec::new());
    }
    let thresholds = thresholds(pairs, keeps, n, progress)?;
    let runs = cut(pairs);
    let parts = spans::map(&runs, progress, PairRun::default, |run, span| {
        let pair = pairs[span.item];
        let (left, right) = run.load(pair, span)?;
        progress.advance(pair.n_bytes(span.len));
        let sums = thresholds
            .iter()
            .map(|&thresholds| SignSums::truncated(left, right, thresholds));
        Ok(sums.collect::<Vec<_>>())
    })?;
    let mut sums = vec![SignSums::default(); keeps.len()];
    for part in parts {
        sums.iter_mut()
            .zip(part)
            .for_each(|(sum, part)| sum.add(part));
    }
    Ok(sums.iter().map(SignSums::dissimilarity).collect())
}

/// The smallest magnitude that each share keeps, on the left and on the right.
fn thresholds(
    pairs: &[&Pair<'_>],
    keeps: &[Keep],
    n: u64,
    progress: &dyn Progress,
) -> Result<Vec<[f64; 2]>> {
    let mut selections: Vec<[Selection; 2]> = keeps
        .iter()
        .map(|keep| [(); 2].map(|()| Selection::new(n, keep.n_kept(n))))
        .collect();
    let runs = cut(pairs);
    // Counts add up to the same in any order, so each thread may keep one tally for many runs.
    let share = runs.len().div_ceil(rayon::current_num_threads()).max(1);
    loop {
        let found = selections
            .iter()
            .map(|[left, right]| Some([left.found()?, right.found()?]));
        if let Some(thresholds) = found.collect() {
            return Ok(thresholds);
        }
        let tallies: Vec<Vec<[Tally; 2]>> = runs
            .par_chunks(share)
            .map(|runs| tally(pairs, runs, &selections, progress))
            .collect::<Result<_>>()?;
        let mut by_selection: Vec<[Vec<Tally>; 2]> =
            keeps.iter().map(|_| [Vec::new(), Vec::new()]).collect();
        for (sides, tally) in tallies.into_iter().flat_map(|t| t.into_iter().enumerate()) {
            let [left, right] = tally;
            by_selection[sides][0].push(left);
            by_selection[sides][1].push(right);
        }
        for (selection, tallies) in selections.iter_mut().zip(by_selection) {
            for (side, tallies) in selection.iter_mut().zip(tallies) {
                side.narrow(tallies);
            }
        }
    }
}

/// One thread's part of a pass.
fn tally(
    pairs: &[&Pair<'_>],
    runs: &[Span],
    selections: &[[Selection; 2]],
    progress: &dyn Progress,
) -> Result<Vec<[Tally; 2]>> {
    let mut run = PairRun::default();
    let mut tallies: Vec<[Tally; 2]> = selections
        .iter()
        .map(|sides| [sides[0].tally(), sides[1].tally()])
        .collect();
    for &span in runs {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let pair = pairs[span.item];
        let (left, right) = run.load(pair, span)?;
        progress.advance(pair.n_bytes(span.len));
        for (sides, tally) in selections.iter().zip(&mut tallies) {
            sides[0].add(&mut tally[0], left);
            sides[1].add(&mut tally[1], right);
        }
    }
    Ok(tallies)
}
