//! Thinning task vectors: by magnitude, by chance, without outliers, or by chance that grows with rank.

use super::draws::{DrawKey, MemberDraws};
use super::selection::{BLOCK, Draft, Measure, Rank, Window, find, length, place_equals};
use super::survey::{Look, lanes, sums};
use super::{Chunk, Passes, Real};
use crate::Result;

/// How one task vector is thinned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sparsifier {
    /// Not at all.
    None,
    /// Everything becomes zero.
    All,
    /// The largest `share` stay, at least one.
    Largest {
        /// Share of the elements.
        share: f64,
    },
    /// Each element stays with this probability.
    Chance {
        /// The probability.
        share: f64,
    },
    /// `share` stay, of what is left when the `outliers` largest are gone.
    WithoutOutliers {
        /// Share of the elements.
        share: f64,
        /// Share of the largest that go.
        outliers: f64,
    },
    /// Each element stays with a probability between `low` and `high` that grows with the rank of
    /// its magnitude in its row.
    ChanceByRank {
        /// Probability of the smallest.
        low: f64,
        /// Probability of the largest.
        high: f64,
    },
}

/// By what a thinned task vector is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rescale {
    /// Nothing.
    None,
    /// The sum of its magnitudes before over that after.
    Norm,
    /// Each element by the inverse of its probability to stay.
    Inverse,
}

impl Rescale {
    /// By its name in recipes.
    pub(super) fn by_name(name: Option<&str>) -> Self {
        match name {
            Some("l1") => Self::Norm,
            Some("inverse") => Self::Inverse,
            _ => Self::None,
        }
    }
}

/// Below this a sum of magnitudes counts as zero, as in mergekit.
const MIN_SUM: f64 = 1e-7;

/// How the task vectors of a group are thinned.
#[derive(Clone)]
pub(super) struct Thinning {
    /// Each member's way.
    pub(super) members: Vec<Sparsifier>,
    /// How they are rescaled.
    pub(super) rescale: Rescale,
    /// Elements of a row, for ranks; and how far apart they are.
    pub(super) row: Row,
    /// The draws.
    pub(super) draws: DrawKey,
}

/// A row of a tensor: its second axis, or all of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Elements of a row.
    pub(super) length: usize,
    /// Distance of its elements in memory.
    pub(super) stride: usize,
}

impl Row {
    /// The rows of a tensor of this shape.
    pub(super) fn of(shape: &[usize]) -> Self {
        match shape {
            [] => Self {
                length: 1,
                stride: 1,
            },
            [length] => Self {
                length: *length,
                stride: 1,
            },
            [_, length, rest @ ..] => Self {
                length: *length,
                stride: rest.iter().product(),
            },
        }
    }

    /// Elements that must be together for whole rows.
    pub(super) const fn unit(self) -> usize {
        self.length * self.stride
    }
}

/// Task vectors as magnitudes to rank.
pub(super) struct DeltaSize;

impl Measure for DeltaSize {
    fn measure<T: Real>(&self, row: usize, chunk: &Chunk<'_, T>, first: usize, out: &mut [T]) {
        delta(chunk, row, first, out);
    }
}

/// Elements `first..` of member `member` minus the base.
pub(super) fn delta<T: Real>(chunk: &Chunk<'_, T>, member: usize, first: usize, out: &mut [T]) {
    let value = &chunk.members[member][first..first + out.len()];
    let base = &chunk.base.unwrap_or_default()[first..first + out.len()];
    crate::vectorized(
        #[inline(always)]
        || {
            for ((out, &value), &base) in out.iter_mut().zip(value).zip(base) {
                *out = value - base;
            }
        },
    );
}

/// Thinning with everything that had to be looked up in the whole tensor.
pub(super) struct Thinned {
    members: Vec<Ready>,
    row: Row,
    inverse: bool,
    chunk_elements: usize,
    /// Factor on each thinned task vector.
    factors: Vec<f64>,
}

enum Ready {
    Keep,
    Clear,
    Window(Window),
    Chance {
        share: f32,
        draws: MemberDraws,
    },
    ChanceByRank {
        low: f32,
        high: f32,
        draws: MemberDraws,
    },
}

impl Thinning {
    /// Whether any member is thinned by what is found in the whole tensor or rescaled by it.
    pub(super) fn looks(&self) -> bool {
        self.members.iter().any(|way| *way != Sparsifier::None)
    }

    /// Looks at the data.
    pub(super) fn survey(&self, data: &dyn Passes) -> Result<Thinned> {
        let n = data.n_elements() as u64;
        let is_drawn: Vec<bool> = (self.members.iter())
            .map(|way| {
                matches!(
                    way,
                    Sparsifier::Chance { .. } | Sparsifier::ChanceByRank { .. }
                )
            })
            .collect();
        let mut draws = self
            .draws
            .members(&is_drawn, data.n_elements(), data.chunk_elements());
        let mut windows = self.windows(data, n)?;
        let members = (self.members.iter().enumerate())
            .map(|(member, way)| match (way, draws[member].take()) {
                (Sparsifier::None, _) => Ready::Keep,
                (&Sparsifier::Chance { share }, Some(draws)) => Ready::Chance {
                    share: share as f32,
                    draws,
                },
                (&Sparsifier::ChanceByRank { low, high }, Some(draws)) => Ready::ChanceByRank {
                    low: low as f32,
                    high: high as f32,
                    draws,
                },
                (Sparsifier::Largest { .. } | Sparsifier::WithoutOutliers { .. }, _) => {
                    windows[member].take().map_or(Ready::Clear, Ready::Window)
                }
                _ => Ready::Clear,
            })
            .collect();
        let mut thinned = Thinned {
            members,
            row: self.row,
            inverse: self.rescale == Rescale::Inverse,
            chunk_elements: data.chunk_elements(),
            factors: vec![1.0; self.members.len()],
        };
        if self.rescale == Rescale::Norm {
            let norms = sums(data, 2 * self.members.len(), &Norms(&thinned))?;
            for (pair, factor) in norms.chunks(2).zip(&mut thinned.factors) {
                if pair[0] >= MIN_SUM && pair[1] >= MIN_SUM {
                    *factor = pair[0] / pair[1];
                }
            }
        }
        Ok(thinned)
    }

    /// The windows of members that are thinned by rank; `None` where nothing stays.
    fn windows(&self, data: &dyn Passes, n: u64) -> Result<Vec<Option<Window>>> {
        let mut ranks = Vec::new();
        for (row, way) in self.members.iter().enumerate() {
            match *way {
                Sparsifier::Largest { share } if n > 0 => {
                    let count = part(share, n).max(1);
                    ranks.push(Rank {
                        row,
                        rank: n - count,
                    });
                }
                Sparsifier::WithoutOutliers { share, outliers } => {
                    let (keep, top) = (part(share, n), part(outliers, n));
                    let bottom = n.saturating_sub(keep + top);
                    if keep > 0 {
                        ranks.push(Rank { row, rank: bottom });
                        ranks.push(Rank {
                            row,
                            rank: bottom + keep - 1,
                        });
                    }
                }
                _ => {}
            }
        }
        let mut windows = vec![None; self.members.len()];
        if ranks.is_empty() {
            return Ok(windows);
        }
        let found = find(data, &DeltaSize, &ranks)?;
        let mut drafts = Vec::new();
        for (row, way) in self.members.iter().enumerate() {
            let mut own = ranks.iter().zip(&found).filter(|(rank, _)| rank.row == row);
            let Some((rank, &first)) = own.next() else {
                continue;
            };
            let last = own.next().map_or(first, |(_, &last)| last);
            let window = match way {
                Sparsifier::Largest { .. } => Window::largest(first, n - rank.rank),
                _ => Window::between(first, last),
            };
            drafts.push(Draft {
                row,
                window,
                low_equal: first.equal,
                high_equal: last.equal,
            });
        }
        place_equals(data, &DeltaSize, &mut drafts)?;
        for draft in drafts {
            windows[draft.row] = Some(draft.window);
        }
        Ok(windows)
    }
}

/// `⌊share · n⌋`.
fn part(share: f64, n: u64) -> u64 {
    (share * n as f64) as u64
}

impl Thinned {
    /// Elements of a chunk's thinned and rescaled task vectors, one buffer a member.
    pub(super) fn deltas<T: Real>(&self, chunk: &Chunk<'_, T>) -> Vec<Vec<T>> {
        let mut all = self.thin(chunk);
        for (delta, &factor) in all.iter_mut().zip(&self.factors) {
            if factor != 1.0 {
                let factor = T::from_f64(factor);
                crate::vectorized(
                    #[inline(always)]
                    || delta.iter_mut().for_each(|value| *value = *value * factor),
                );
            }
        }
        all
    }

    fn thin<T: Real>(&self, chunk: &Chunk<'_, T>) -> Vec<Vec<T>> {
        (0..self.members.len())
            .map(|member| self.thin_member(chunk, member))
            .collect()
    }

    fn thin_member<T: Real>(&self, chunk: &Chunk<'_, T>, member: usize) -> Vec<T> {
        let n = length(chunk);
        let mut out = vec![T::ZERO; n];
        delta(chunk, member, 0, &mut out);
        let index = chunk.first / self.chunk_elements.max(1);
        match &self.members[member] {
            Ready::Keep => {}
            Ready::Clear => out.fill(T::ZERO),
            Ready::Window(window) => {
                let mut seen = (0, 0);
                for block in out.chunks_mut(BLOCK) {
                    window.apply(index, &mut seen, block);
                }
            }
            Ready::Chance { share, draws } => {
                let mut uniform = vec![0.0; n];
                draws.fill(chunk.first, &mut uniform);
                let factor = match self.inverse {
                    true => T::from_f64(1.0 / f64::from(*share)),
                    false => T::ONE,
                };
                for (out, &draw) in out.iter_mut().zip(&uniform) {
                    *out = if draw < *share {
                        *out * factor
                    } else {
                        T::ZERO
                    };
                }
            }
            Ready::ChanceByRank { low, high, draws } => {
                let mut uniform = vec![0.0; n];
                draws.fill(chunk.first, &mut uniform);
                self.thin_by_rank(&mut out, &uniform, *low, *high);
            }
        }
        out
    }

    /// Row by row: ranks, probabilities, decisions.
    fn thin_by_rank<T: Real>(&self, values: &mut [T], draws: &[f32], low: f32, high: f32) {
        let Row { length, stride } = self.row;
        if length == 0 {
            return;
        }
        let mut order: Vec<(u64, u32)> = Vec::with_capacity(length);
        let span = high - low;
        for block in (0..values.len()).step_by(length * stride) {
            for lane in 0..stride {
                let at = |place: usize| block + lane + place * stride;
                order.clear();
                order.extend((0..length).map(|k| (values[at(k)].magnitude(), k as u32)));
                order.sort_unstable();
                for (rank, &(_, place)) in order.iter().enumerate() {
                    let share = match length {
                        1 => low + span * 0.5,
                        n => low + span * (rank as f32 / (n - 1) as f32),
                    };
                    let index = at(place as usize);
                    let stays = draws[index] < share;
                    let factor = match self.inverse {
                        true => T::from_f64(1.0 / f64::from(share)),
                        false => T::ONE,
                    };
                    values[index] = if stays {
                        values[index] * factor
                    } else {
                        T::ZERO
                    };
                }
            }
        }
    }
}

/// Sums of magnitudes of each task vector, before and after.
struct Norms<'a>(&'a Thinned);

impl Look for Norms<'_> {
    type Note = Vec<f64>;

    fn look<T: Real>(&self, _: usize, chunk: &Chunk<'_, T>) -> Vec<f64> {
        let n = length(chunk);
        let mut before = vec![T::ZERO; n];
        let mut notes = Vec::with_capacity(2 * self.0.members.len());
        for (member, way) in self.0.members.iter().enumerate() {
            if matches!(way, Ready::Keep) {
                notes.extend([0.0, 0.0]);
                continue;
            }
            delta(chunk, member, 0, &mut before);
            let after = self.0.thin_member(chunk, member);
            for values in [&before, &after] {
                notes.push(crate::vectorized(
                    #[inline(always)]
                    || lanes(n, |k| values[k].abs().to_f64()),
                ));
            }
        }
        notes
    }
}

/// The way of dare. Where mergekit's masks are asked for, the probability is rounded as it does.
pub(super) fn chance(group: &super::GroupShape<'_>, density: f64) -> Sparsifier {
    let is_coarse = group.draws.tape.is_some() && group.dtype == crate::DType::BF16;
    Sparsifier::Chance {
        share: match is_coarse {
            true => half::bf16::from_f64(density).to_f64(),
            false => density,
        },
    }
}
