//! The loss of comparing every image with every text, and its gradients by the features.
//!
//! Nothing here has a graph: the loss is a closed formula of features, so its gradients are one too.
//! Rows are computed in stretches, and no matrix has a row for each image and a column for each text of
//! the whole batch.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use evaluate::crossing;

use super::{gather, sigmoid};
use crate::collective::Collective;
use crate::{Error, Result};

/// Numbers of a stretch of rows: 4 MiB in `f32`, all similarities of a batch of 1,024.
const STRETCH: usize = 1 << 20;

/// The candidates that a pair is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contrast {
    /// All candidates at once, by the softmax over them.
    #[default]
    Softmax,
    /// Nothing: each pair is right or wrong on its own.
    Sigmoid,
}

/// Rules of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The candidates that a pair is compared with.
    pub contrast: Contrast,
    /// Share of the target that is spread over all candidates.
    pub smoothing: f64,
    /// Ranks whose features are compared with one another, in a row; all unless given.
    pub group: Option<usize>,
    /// Whether features learn from the rows of all ranks that they are candidates in. Without it a
    /// feature learns as a query alone, even with one rank.
    pub learns_as_candidate: bool,
    /// Whether gradients by features are divided by the number of ranks, that by the scale not.
    pub shares_gradient: bool,
}

impl Default for Comparison {
    fn default() -> Self {
        Self {
            contrast: Contrast::Softmax,
            smoothing: 0.0,
            group: None,
            learns_as_candidate: true,
            shares_gradient: false,
        }
    }
}

/// Pairs that were mixed: each row's target is its own partner by a share of `alpha`, else that of the row
/// that stands as far from the end of its block as this one from the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixed {
    /// Share of the row itself.
    pub alpha: f64,
    /// Rows of a block.
    pub block: usize,
}

impl Mixed {
    /// The row that row `row` of a rank is mixed with.
    #[must_use]
    pub fn partner(self, row: usize, n_rows: usize) -> usize {
        let first = row / self.block * self.block;
        let end = (first + self.block).min(n_rows);
        first + (end - 1 - row)
    }
}

/// Features of one rank that belong together, without a graph.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// `(b, d)`, f32, of length one.
    pub images: &'a Tensor,
    /// `(b, d)`, f32, of length one.
    pub texts: &'a Tensor,
    /// The factor of similarities.
    pub scale: f64,
    /// The number added after that, which moves nothing but a contrast of single pairs.
    pub bias: f64,
    /// Rows that neither learn nor are candidates: their feature becomes zero.
    pub ignored: Option<&'a [bool]>,
    /// The mix of pairs.
    pub mixed: Option<Mixed>,
    /// A number for each row: rows of the same number, on whatever rank, belong to one another, and share the target.
    pub same: Option<&'a [u32]>,
}

/// The side whose rows are queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Query {
    /// Images ask for their texts.
    Image,
    /// Texts ask for their images.
    Text,
}

/// A loss and its gradients.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The mean loss of this rank's images as queries.
    pub image_loss: f64,
    /// The mean loss of this rank's texts as queries.
    pub text_loss: f64,
    /// Gradient of the sum of all ranks' losses by this rank's images, `(b, d)`.
    pub images: Tensor,
    /// Gradient of the sum of all ranks' losses by this rank's texts, `(b, d)`.
    pub texts: Tensor,
    /// Gradient of this rank's loss by the scale.
    pub scale: f64,
    /// Gradient of this rank's loss by the bias.
    pub bias: f64,
    /// Of this rank's images, how many have their own text as the nearest.
    pub images_hit: f64,
    /// Of this rank's texts, how many have their own image as the nearest.
    pub texts_hit: f64,
    /// Rows of this rank that are not ignored.
    pub n_rows: f64,
}

impl Compared {
    /// This rank's loss; averaged over the ranks, that of the whole batch.
    #[must_use]
    pub fn loss(&self) -> f64 {
        0.5 * (self.image_loss + self.text_loss)
    }
}

/// Features of a group of ranks.
pub(super) struct Group {
    pub images: Tensor,
    pub texts: Tensor,
    /// 1, or 0 for ignored ones.
    kept: Option<Vec<f32>>,
    /// A number for each row, by which several belong together.
    same: Option<Vec<u32>>,
    ranks: Range<usize>,
    /// Of this rank's first row.
    pub first: usize,
}

/// The loss of one side's queries.
struct Asked {
    loss: f64,
    hits: f64,
    /// `ln Σ exp` of each row of the group.
    log_sums: Vec<f32>,
}

/// Compares this rank's rows with those of its group, both ways.
///
/// Queries of row `i` have the loss `ln Σⱼ exp sᵢⱼ − Σⱼ qᵢⱼ sᵢⱼ`, where `s` are similarities times the
/// scale and `q` is the target. A rank's loss is the mean over its rows and both ways.
///
/// # Errors
/// [`Error::BadSetting`] when the ranks cannot be cut into groups; when a rank is gone or the device fails.
pub fn compare(
    features: &Features<'_>,
    rules: &Comparison,
    collective: &dyn Collective,
) -> Result<Compared> {
    let group = Group::gather(features, rules, collective)?;
    if rules.contrast == Contrast::Sigmoid {
        return sigmoid::compare(features, &group);
    }
    let work = Work {
        features,
        rules,
        group: &group,
        n_rows: features.images.dim(0)?,
    };
    let image = work.ask(Query::Image, collective)?;
    let text = work.ask(Query::Text, collective)?;
    let (images, image_scale) = work.gradient(Query::Image, &image.log_sums, &text.log_sums)?;
    let (texts, text_scale) = work.gradient(Query::Text, &text.log_sums, &image.log_sums)?;
    let share = match rules.shares_gradient {
        true => 1.0 / collective.size() as f64,
        false => 1.0,
    };
    Ok(Compared {
        image_loss: image.loss,
        text_loss: text.loss,
        images: (images * share)?,
        texts: (texts * share)?,
        scale: image_scale + text_scale,
        bias: 0.0,
        images_hit: image.hits,
        texts_hit: text.hits,
        n_rows: (0..work.n_rows).filter(|&row| work.is_kept(row)).count() as f64,
    })
}

impl Group {
    /// Whether two rows of the group belong together.
    pub fn belongs(&self, one: usize, other: usize) -> bool {
        match &self.same {
            None => one == other,
            Some(same) => same.get(one) == same.get(other),
        }
    }

    fn gather(
        features: &Features<'_>,
        rules: &Comparison,
        collective: &dyn Collective,
    ) -> Result<Self> {
        let (rank, n_ranks) = (collective.rank(), collective.size());
        let size = rules.group.unwrap_or(n_ranks);
        if size == 0 || !n_ranks.is_multiple_of(size) {
            return Err(Error::BadSetting {
                key: "group_size".into(),
                reason: format!("{n_ranks} ranks cannot be cut into groups of {size}"),
            });
        }
        let ranks = rank / size * size..(rank / size + 1) * size;
        let n_rows = features.images.dim(0)?;
        let kept = features.ignored.map(|ignored| {
            let kept = ignored.iter().map(|&ignored| f32::from(u8::from(!ignored)));
            gather::numbers(&kept.collect::<Vec<_>>(), &ranks, collective)
        });
        let same = features
            .same
            .map(|same| gather::numbers(same, &ranks, collective));
        Ok(Self {
            same: same.transpose()?,
            kept: kept.transpose()?,
            images: gather::rows::<f32>(features.images, &ranks, collective)?,
            texts: gather::rows::<f32>(features.texts, &ranks, collective)?,
            first: (rank - ranks.start) * n_rows,
            ranks,
        })
    }
}

/// Cuts rows into stretches that have few similarities with all candidates: where each begins and how many
/// rows it has.
pub(super) fn stretches(
    n_rows: usize,
    n_candidates: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let at_once = (STRETCH / n_candidates.max(1)).max(1);
    (0..n_rows)
        .step_by(at_once)
        .map(move |from| (from, at_once.min(n_rows - from)))
}

/// Similarities of a stretch of rows with all candidates, times the scale: `(rows, candidates)`.
pub(super) fn similarities(
    own: &Tensor,
    candidates: &Tensor,
    scale: f64,
    (from, n): (usize, usize),
) -> Result<Tensor> {
    let rows = own.narrow(0, from, n)?.contiguous()?;
    Ok((rows.matmul(&candidates.t()?)? * scale)?)
}

struct Work<'a> {
    features: &'a Features<'a>,
    rules: &'a Comparison,
    group: &'a Group,
    n_rows: usize,
}

impl Work<'_> {
    /// This rank's rows of one side, and the group's of the other.
    fn sides(&self, query: Query) -> (&Tensor, &Tensor) {
        match query {
            Query::Image => (self.features.images, &self.group.texts),
            Query::Text => (self.features.texts, &self.group.images),
        }
    }

    fn is_kept(&self, row: usize) -> bool {
        let ignored = self.features.ignored;
        !ignored.is_some_and(|ignored| ignored.get(row).copied().unwrap_or(false))
    }

    /// The group's flags as a row.
    fn kept(&self, device: &Device) -> Result<Option<Tensor>> {
        let Some(kept) = &self.group.kept else {
            return Ok(None);
        };
        let kept = crossing::to_device(kept.clone(), (1, kept.len()), device)?;
        Ok(Some(kept))
    }

    /// This rank's flags of a stretch, as a column.
    fn kept_rows(&self, (from, n): (usize, usize), device: &Device) -> Result<Option<Tensor>> {
        let Some(kept) = &self.group.kept else {
            return Ok(None);
        };
        let first = self.group.first + from;
        let kept = crossing::to_device(kept[first..first + n].to_vec(), (n, 1), device)?;
        Ok(Some(kept))
    }

    /// The targets of each row of a stretch, `(rows, candidates)`.
    fn targets(&self, (from, n): (usize, usize), n_candidates: usize) -> Vec<f32> {
        let smoothing = self.rules.smoothing;
        let mut targets = vec![(smoothing / n_candidates as f64) as f32; n * n_candidates];
        let sharp = 1.0 - smoothing;
        for (at, row) in (from..from + n).enumerate() {
            let of_row = &mut targets[at * n_candidates..(at + 1) * n_candidates];
            let first = self.group.first;
            match self.features.mixed {
                None => match &self.group.same {
                    None => of_row[first + row] += sharp as f32,
                    Some(same) => {
                        let own = same[first + row];
                        let n = same.iter().filter(|other| **other == own).count();
                        let share = (sharp / n as f64) as f32;
                        let rows = of_row.iter_mut().zip(same);
                        rows.filter(|(_, other)| **other == own)
                            .for_each(|(target, _)| *target += share);
                    }
                },
                Some(mixed) => {
                    of_row[first + row] += (sharp * mixed.alpha) as f32;
                    let partner = first + mixed.partner(row, self.n_rows);
                    of_row[partner] += (sharp * (1.0 - mixed.alpha)) as f32;
                }
            }
        }
        targets
    }

    /// [`Work::targets`] on the device. Where each row has one partner alone, the matrix is made there.
    fn targets_on(
        &self,
        (from, n): (usize, usize),
        n_candidates: usize,
        device: &Device,
    ) -> Result<Tensor> {
        if self.features.mixed.is_some() || self.group.same.is_some() {
            let targets = self.targets((from, n), n_candidates);
            return Ok(crossing::to_device(targets, (n, n_candidates), device)?);
        }
        self.partners_on((from, n), n_candidates, device)
    }

    /// The targets where row `i` belongs to candidate `i` of this rank alone: of the numbers of rows and candidates.
    fn partners_on(
        &self,
        (from, n): (usize, usize),
        n_candidates: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let first = self.group.first + from;
        let numbers = |of: Range<usize>| of.map(|at| at as u32).collect::<Vec<u32>>();
        let own = crossing::to_device(numbers(first..first + n), (n, 1), device)?;
        let all = crossing::to_device(numbers(0..n_candidates), (1, n_candidates), device)?;
        let is_own = own.broadcast_eq(&all)?.to_dtype(DType::F32)?;
        let smoothing = self.rules.smoothing;
        Ok(is_own.affine(1.0 - smoothing, smoothing / n_candidates as f64)?)
    }

    /// The losses of this rank's rows, and the sums behind those of the group.
    fn ask(&self, query: Query, collective: &dyn Collective) -> Result<Asked> {
        let (own, others) = self.sides(query);
        let (device, n_candidates) = (own.device(), others.dim(0)?);
        let kept = self.kept(device)?;
        let (mut loss, mut hits) = (0.0, 0.0);
        let mut log_sums: Vec<f32> = Vec::with_capacity(self.n_rows);
        for stretch in stretches(self.n_rows, n_candidates) {
            let mut rows = similarities(own, others, self.features.scale, stretch)?;
            if let Some(kept) = &kept {
                rows = rows.broadcast_mul(kept)?;
            }
            let most = rows.max_keepdim(1)?;
            let sums = rows.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?;
            let of_rows = (sums.log()? + most)?.flatten_all()?;
            let found = (&rows * self.targets_on(stretch, n_candidates, device)?)?.sum(1)?;
            // Numbers of rows are exact in f32 up to 2²⁴; one copy for all three.
            let best = rows.argmax(1)?.to_dtype(DType::F32)?;
            let told: Vec<f32> = crossing::to_memory(&Tensor::stack(&[of_rows, found, best], 0)?)?;
            let (of_rows, rest) = told.split_at(stretch.1);
            let (found, best) = rest.split_at(stretch.1);
            for (at, row) in (stretch.0..stretch.0 + stretch.1).enumerate() {
                if self.is_kept(row) {
                    loss += f64::from(of_rows[at]) - f64::from(found[at]);
                    let (best, own) = (best[at] as usize, self.group.first + row);
                    let is_hit = match &self.group.same {
                        None => best == own,
                        Some(same) => same.get(best) == same.get(own),
                    };
                    hits += f64::from(u8::from(is_hit));
                }
            }
            log_sums.extend_from_slice(of_rows);
        }
        Ok(Asked {
            loss: loss / self.n_rows as f64,
            hits,
            log_sums: gather::numbers(&log_sums, &self.group.ranks, collective)?,
        })
    }

    /// The gradient by this rank's rows of one side, and that by the scale of their own loss. `own` and
    /// `others` are the logarithms of the sums of this side's queries and of the other's.
    fn gradient(&self, query: Query, own: &[f32], others: &[f32]) -> Result<(Tensor, f64)> {
        let (rows, candidates) = self.sides(query);
        let (device, n_candidates) = (rows.device(), candidates.dim(0)?);
        let kept = self.kept(device)?;
        let others = crossing::to_device(others.to_vec(), (1, n_candidates), device)?;
        // Of the mean over this rank's rows, and of both ways.
        let share = 0.5 / self.n_rows as f64;
        let mut parts = Vec::new();
        let mut by_scale = 0.0;
        for stretch in stretches(self.n_rows, n_candidates) {
            let (from, n) = stretch;
            let plain = similarities(rows, candidates, self.features.scale, stretch)?;
            let targets = self.targets_on(stretch, n_candidates, device)?;
            let first = self.group.first + from;
            let own = crossing::to_device(own[first..first + n].to_vec(), (n, 1), device)?;
            let kept_rows = self.kept_rows(stretch, device)?;
            let both = |tensor: Tensor| -> Result<Tensor> {
                Ok(match (&kept, &kept_rows) {
                    (Some(kept), Some(rows)) => tensor.broadcast_mul(kept)?.broadcast_mul(rows)?,
                    _ => tensor,
                })
            };
            let asked = match &kept {
                Some(kept) => plain.broadcast_mul(kept)?,
                None => plain.clone(),
            };
            let as_query = both((asked.broadcast_sub(&own)?.exp()? - &targets)?)?;
            let sums: Vec<f32> = crossing::to_memory(&(&as_query * &plain)?.sum(1)?)?;
            by_scale += sums.into_iter().map(f64::from).sum::<f64>();
            let moved = match self.rules.learns_as_candidate {
                false => as_query,
                true => {
                    let asked = match &kept_rows {
                        Some(rows) => plain.broadcast_mul(rows)?,
                        None => plain,
                    };
                    let as_candidate = (asked.broadcast_sub(&others)?.exp()? - targets)?;
                    (as_query + both(as_candidate)?)?
                }
            };
            let scale = share * self.features.scale;
            parts.push((moved.matmul(candidates)? * scale)?);
        }
        let by_scale = share * by_scale / self.features.scale;
        Ok((Tensor::cat(&parts, 0)?.to_dtype(DType::F32)?, by_scale))
    }
}
