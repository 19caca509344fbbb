//! Thinning task vectors: by magnitude, by chance, without outliers, or by chance that grows with rank.

use crate::Result;
use crate::methods::ranking::by_count::{Draft, Measure, Rank, Window, find, place_equals};
use crate::methods::ranking::by_sample;
use crate::methods::ranking::within_rows::RowChances;
use crate::methods::thinning::draws::DrawKey;
use crate::methods::thinning::task_vectors::{Ready, Thinned};
use crate::methods::{Chunk, Passes, Real, Value, reals};

/// The thinning of one task vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::methods) enum Sparsifier {
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
    /// `share` stay, of those that remain without the `outliers` largest.
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

impl Sparsifier {
    /// Whether chance decides.
    const fn is_drawn(&self) -> bool {
        matches!(self, Self::Chance { .. } | Self::ChanceByRank { .. })
    }
}

/// The factor of a thinned task vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::methods) enum Rescale {
    /// Nothing.
    None,
    /// The sum of its magnitudes before over that after.
    Norm,
    /// Each element by the inverse of its probability to stay.
    Inverse,
}

impl Rescale {
    /// By its name in recipes.
    pub(in crate::methods) fn by_name(name: Option<&str>) -> Self {
        match name {
            Some("l1") => Self::Norm,
            Some("inverse") => Self::Inverse,
            _ => Self::None,
        }
    }
}

/// Masks of a tensor are kept from the pass that sums up what they leave to the one that writes, if
/// they take no more; beyond it they are drawn twice.
const MAX_MASK_BYTES: u64 = 32 << 20;

/// The thinning of a group's task vectors.
#[derive(Clone)]
pub(in crate::methods) struct Thinning {
    /// Each member's way.
    pub(in crate::methods) members: Vec<Sparsifier>,
    /// Their rescaling.
    pub(in crate::methods) rescale: Rescale,
    /// Elements of a row, for ranks; and how far apart they are.
    pub(in crate::methods) row: Row,
    /// The draws.
    pub(in crate::methods) draws: DrawKey,
}

/// A row of a tensor: its second axis, or all of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::methods) struct Row {
    /// Elements of a row.
    pub(in crate::methods) length: usize,
    /// Distance of its elements in memory.
    pub(in crate::methods) stride: usize,
}

impl Row {
    /// The rows of a tensor of this shape.
    pub(in crate::methods) fn of(shape: &[usize]) -> Self {
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
    pub(in crate::methods) const fn unit(self) -> usize {
        self.length * self.stride
    }
}

/// Task vectors as magnitudes to rank.
pub(in crate::methods) struct DeltaSize;

impl Measure for DeltaSize {
    fn measure<T: Real, V: Value<Real = T>>(
        &self,
        row: usize,
        chunk: &Chunk<'_, V>,
        first: usize,
        out: &mut [T],
    ) {
        delta(chunk, row, first, out);
    }
}

/// Elements `first..` of member `member` minus the base.
pub(in crate::methods) fn delta<V: Value>(
    chunk: &Chunk<'_, V>,
    member: usize,
    first: usize,
    out: &mut [V::Real],
) {
    let value = &chunk.members[member][first..first + out.len()];
    let base = &chunk.base.unwrap_or_default()[first..first + out.len()];
    crate::vectorized(
        #[inline(always)]
        || {
            for ((out, value), base) in out.iter_mut().zip(reals(value)).zip(reals(base)) {
                *out = value - base;
            }
        },
    );
}

impl Thinning {
    /// Whether the thinning or the rescaling of any member needs the whole tensor.
    pub(in crate::methods) fn looks(&self) -> bool {
        self.members.iter().any(|way| *way != Sparsifier::None)
    }

    /// Looks at the data.
    pub(in crate::methods) fn survey(&self, data: &dyn Passes) -> Result<Thinned> {
        let n = data.n_elements() as u64;
        let is_drawn: Vec<bool> = self.members.iter().map(Sparsifier::is_drawn).collect();
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
                    chances: RowChances::new(self.row, low as f32, high as f32),
                    draws,
                },
                (Sparsifier::Largest { .. } | Sparsifier::WithoutOutliers { .. }, _) => {
                    windows[member].take().map_or(Ready::Clear, Ready::Window)
                }
                _ => Ready::Clear,
            })
            .collect();
        let inverse = self.rescale == Rescale::Inverse;
        let mut thinned = Thinned::new(members, inverse, data.chunk_elements());
        if self.rescale == Rescale::Norm {
            thinned.rescale(data, self.mask_bytes(data.n_elements()) <= MAX_MASK_BYTES)?;
        }
        Ok(thinned)
    }

    /// Bytes of all masks of a tensor.
    fn mask_bytes(&self, n_elements: usize) -> u64 {
        let n_drawn = self.members.iter().filter(|way| way.is_drawn()).count();
        (n_elements.div_ceil(8) * n_drawn) as u64
    }

    /// Most bytes that a survey keeps.
    pub(in crate::methods) fn kept_bytes(&self, n_elements: usize) -> u64 {
        let by_chance = self.mask_bytes(n_elements).min(MAX_MASK_BYTES);
        let by_rank = self.members.iter().map(|way| match way {
            Sparsifier::Largest { .. } => by_sample::kept_bytes(n_elements),
            Sparsifier::WithoutOutliers { .. } => 2 * by_sample::kept_bytes(n_elements),
            _ => 0,
        });
        by_chance + by_rank.sum::<u64>()
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
        let near = by_sample::find(data, &DeltaSize, &ranks)?;
        let found = match &near {
            Some(near) => near.iter().map(|near| near.found).collect(),
            None => find(data, &DeltaSize, &ranks)?,
        };
        let mut drafts = Vec::new();
        for (row, way) in self.members.iter().enumerate() {
            let mut own = (0..ranks.len()).filter(|&index| ranks[index].row == row);
            let Some(low) = own.next() else {
                continue;
            };
            let high = own.next().unwrap_or(low);
            let (first, last) = (found[low], found[high]);
            let mut window = match way {
                Sparsifier::Largest { .. } => Window::largest(first, n - ranks[low].rank),
                _ => Window::between(first, last),
            };
            if let Some(near) = &near {
                window.place_equals(first, last, &near[low].in_chunks, &near[high].in_chunks);
                windows[row] = Some(window);
                continue;
            }
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

/// The way of dare. With `rng: mergekit` the probability is rounded as in mergekit.
pub(in crate::methods) fn chance(
    group: &crate::methods::GroupShape<'_>,
    density: f64,
) -> Sparsifier {
    let is_coarse = group.draws.tape.is_some() && group.dtype == crate::DType::BF16;
    Sparsifier::Chance {
        share: match is_coarse {
            true => half::bf16::from_f64(density).to_f64(),
            false => density,
        },
    }
}
