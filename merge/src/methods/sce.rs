use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::passes::{Count, Look, sums, tally};
use crate::methods::kernels::sums::lanes;
use crate::methods::parameters::{Fallback, ParameterSpec, SHARE};
use crate::methods::ranking::by_count::{
    BLOCK, Draft, Measure, Rank, Window, find, length, place_equals,
};
use crate::methods::thinning::consensus::INT8_MASK;
use crate::methods::{
    Base, Chunk, ElementKernel, Elementwise, GroupShape, MergeMethod, Needs, Operation, Value,
};
use crate::methods::{Passes, Real, Survey};

/// ## What it does
/// Selects the elements in which the models differ most, calculates how much each model changed, erases
/// the minority's signs: of the task vectors `dᵢ = xᵢ − b` only the `select_topk` share of elements of largest
/// variance over the models is kept (of those with any); an element's sign is elected by the sum; model i
/// weighs by the mean of its `dᵢ²`; `W = b + Σ' qᵢ dᵢ / Σ' qᵢ` over the models that have the elected sign.
/// ## Why
/// Elements in which the models agree carry nothing of a single task. Variance finds the others, and squares say
/// how much each model changed.
/// ## Cost
/// Several passes over each tensor: for the cut, for the weights, and one that writes.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `select_topk` | 1 | `[0, 1]` | share of the elements that are kept |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Wan et al. 2024, "FuseChat", <https://arxiv.org/abs/2408.07990>.
/// # Errors
/// A share outside [0, 1] is refused with the recipe's line.
#[derive(Clone, Copy, Debug)]
pub struct Sce;

/// Below this a sum of squares or weights counts as zero, as in mergekit.
const FLOOR: f64 = 1e-6;

impl MergeMethod for Sce {
    fn name(&self) -> &'static str {
        "sce"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 0, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec::shared("select_topk", SHARE, Fallback::Number(1.0)),
                INT8_MASK,
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if group.members.is_empty() {
            return Ok(Operation::TakeBase);
        }
        Ok(Operation::Survey(Arc::new(Select {
            share: group.values.number("select_topk"),
            n_members: group.members.len(),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!(
            "base + what {} changed, by how much",
            group.labels().join(", ")
        )
    }
}

struct Select {
    share: f64,
    n_members: usize,
}

impl Survey for Select {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let n = self.n_members;
        let window = match self.share {
            1.0.. => None,
            share => Some(kept(data, share)?),
        };
        let mut kernel = Vote {
            window,
            shares: vec![1.0 / n as f64; n],
            chunk_elements: data.chunk_elements(),
        };
        let squares = sums(data, n, &Squares(&kernel))?;
        let means = squares.iter().map(|sum| sum / data.n_elements() as f64);
        let total: f64 = means.clone().sum();
        if total >= FLOOR {
            kernel.shares = means.map(|mean| mean / total).collect();
        }
        Ok(Arc::new(kernel))
    }
}

/// The window of variances that are kept; an empty one if none are.
fn kept(data: &dyn Passes, share: f64) -> Result<Window> {
    let n = data.n_elements() as u64;
    let nonzero = tally(data, 1, 1, &Nonzero)?[0];
    let count = (share * nonzero as f64) as u64;
    if count == 0 {
        return Ok(Window {
            low: u64::MAX,
            high: u64::MAX,
            ..Window::default()
        });
    }
    let rank = Rank {
        row: 0,
        rank: n - count,
    };
    let found = find(data, &Variance, &[rank])?[0];
    let mut drafts = [Draft {
        row: 0,
        window: Window::largest(found, count),
        low_equal: found.equal,
        high_equal: 0,
    }];
    place_equals(data, &Variance, &mut drafts)?;
    let [draft] = drafts;
    Ok(draft.window)
}

/// Population variance of the differences from the base, over the members.
struct Variance;

impl Measure for Variance {
    fn measure<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        first: usize,
        out: &mut [T],
    ) {
        let base = chunk.base.unwrap_or_default();
        let n = T::from_f64(chunk.members.len() as f64);
        for (index, out) in out.iter_mut().enumerate() {
            let at = first + index;
            let mut sum = T::ZERO;
            for member in chunk.members {
                sum += member[at].real() - base[at].real();
            }
            let mean = sum / n;
            let mut squares = T::ZERO;
            for member in chunk.members {
                let off = member[at].real() - base[at].real() - mean;
                squares += off * off;
            }
            *out = squares / n;
        }
    }
}

struct Nonzero;

impl Count for Nonzero {
    fn count<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        counts: &mut [u64],
    ) {
        let n = length(chunk);
        let mut block = [T::ZERO; BLOCK];
        for first in (0..n).step_by(BLOCK) {
            let block = &mut block[..BLOCK.min(n - first)];
            Variance.measure(0, chunk, first, block);
            counts[0] += block.iter().filter(|&&value| value != T::ZERO).count() as u64;
        }
    }
}

struct Vote {
    window: Option<Window>,
    shares: Vec<f64>,
    chunk_elements: usize,
}

impl Vote {
    /// For each element whether it is kept.
    fn mask<T: Real, V: Value<Real = T>>(&self, chunk: &Chunk<'_, V>) -> Option<Vec<T>> {
        let window = self.window.as_ref()?;
        let mut variances = vec![T::ZERO; length(chunk)];
        Variance.measure(0, chunk, 0, &mut variances);
        let index = chunk.first / self.chunk_elements.max(1);
        window.apply(index, &mut (0, 0), &mut variances);
        Some(variances)
    }
}

/// Sums of squares of the kept differences.
struct Squares<'a>(&'a Vote);

impl Look for Squares<'_> {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        let base = chunk.base.unwrap_or_default();
        let mask = self.0.mask(chunk);
        let members = chunk.members.iter();
        members
            .map(|member| {
                lanes(length(chunk), |k| {
                    let stays = mask.as_ref().is_none_or(|mask| mask[k] != T::ZERO);
                    let delta = (member[k].real() - base[k].real()).to_f64();
                    if stays { delta * delta } else { 0.0 }
                })
            })
            .collect()
    }
}

impl Elementwise for Vote {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let base = chunk.base.unwrap_or_default();
        let mask = self.mask(chunk);
        let shares: Vec<T> = self.shares.iter().map(|&q| T::from_f64(q)).collect();
        let floor = T::from_f64(FLOOR);
        for (index, out) in out.iter_mut().enumerate() {
            let stays = mask.as_ref().is_none_or(|mask| mask[index] != T::ZERO);
            let base = base[index].real();
            if !stays {
                *out = base;
                continue;
            }
            let mut sum = T::ZERO;
            for member in chunk.members {
                sum += member[index].real() - base;
            }
            let (mut agreed, mut total) = (T::ZERO, T::ZERO);
            for (member, &share) in chunk.members.iter().zip(&shares) {
                let delta = member[index].real() - base;
                let agrees = if sum >= T::ZERO {
                    delta > T::ZERO
                } else {
                    delta < T::ZERO
                };
                agreed += if agrees { share * delta } else { T::ZERO };
                total += if agrees { share } else { T::ZERO };
            }
            *out = base + agreed / if total > floor { total } else { floor };
        }
    }
}
