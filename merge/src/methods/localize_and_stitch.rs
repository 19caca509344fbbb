use crate::methods::overall::OverallMethod;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, SHARE};
use crate::methods::ranking::over_all::{Rank, at_ranks};
use crate::methods::thinning::consensus::LAMBDA;
use crate::methods::{GroupShape, Groups};
use crate::{Error, Result};

/// ## What it does
/// Keeps the largest elements of each task vector, over all tensors together, and averages where several models keep
/// an element (Localize-and-Stitch without data). With N elements and `k = ⌊sparsity N⌋`, model i keeps those whose
/// magnitude is above its k-th largest, k − 1 of them, as published. `W = b + λ Σ mᵢ Dᵢ / max(1, Σ mᵢ)`.
/// ## Why
/// A small part of the elements holds most of a task, and small parts of several models seldom overlap.
/// ## Cost
/// All inputs are read four times or more before the pass that writes, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `sparsity` | 0.05 | `[0, 1]` | share of the elements |
/// | `trainable` | true | yes, no | by names of tensors: whether a tensor takes part; one that does not keeps the base |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// ## References
/// He et al. 2024, "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic",
/// <https://arxiv.org/abs/2408.13656>, the dataless form.
/// # Errors
/// [`Error::MethodNeeds`] for a `sparsity` that keeps no element;
/// [`MergeFault::VariesByTensor`](crate::MergeFault::VariesByTensor).
#[derive(Clone, Debug, PartialEq)]
pub struct LocalizeAndStitch {
    sparsity: f64,
    lambda: f64,
    n_models: usize,
}

impl OverallMethod for LocalizeAndStitch {
    const NAME: &'static str = "localize_and_stitch";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared("sparsity", SHARE, Fallback::Number(0.05)),
        ParameterSpec::shared("trainable", Kind::Flag, Fallback::Flag(true)),
        LAMBDA,
    ];
    /// The magnitude above which each model keeps its elements.
    type Facts = Vec<f64>;

    fn read(group: &GroupShape<'_>) -> Result<Self> {
        Ok(Self {
            sparsity: group.values.number("sparsity"),
            lambda: group.values.number("lambda"),
            n_models: group.members.len(),
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self == other
    }

    fn takes(group: &GroupShape<'_>) -> bool {
        group.values.flag("trainable")
    }

    fn look(&self, groups: &dyn Groups) -> Result<Vec<f64>> {
        let n = groups.n_elements();
        let kept = (self.sparsity * n as f64) as u64;
        if kept == 0 {
            return Err(Error::MethodNeeds {
                method: Self::NAME,
                what: "a `sparsity` that keeps at least one element of all trainable tensors",
            });
        }
        let place = n - kept;
        let ranks: Vec<Rank> = (0..self.n_models).map(|row| Rank { row, place }).collect();
        at_ranks(groups, &ranks, &|deltas, out| {
            for (out, delta) in out.iter_mut().zip(deltas) {
                *out = delta.abs();
            }
        })
    }

    fn change(&self, thresholds: &Vec<f64>, deltas: &[f64]) -> f64 {
        let pairs = deltas.iter().zip(thresholds);
        let kept = pairs.filter(|(delta, threshold)| delta.abs() > **threshold);
        let (sum, n) = kept.fold((0.0, 0.0), |(sum, n), (delta, _)| (sum + delta, n + 1.0));
        self.lambda * sum / f64::max(n, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_several_models_keep_are_averaged() {
        let method = LocalizeAndStitch {
            sparsity: 0.5,
            lambda: 1.0,
            n_models: 3,
        };
        let thresholds = vec![1.0, 1.0, 3.0];
        // The third model's is not above its threshold.
        assert_eq!(method.change(&thresholds, &[2.0, -4.0, 3.0]), -1.0);
        assert_eq!(method.change(&thresholds, &[2.0, 1.0, 0.0]), 2.0);
        assert_eq!(method.change(&thresholds, &[0.0, 0.0, 0.0]), 0.0);
    }
}
