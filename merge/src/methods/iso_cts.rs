use ndarray::Array2;

use crate::Result;
use crate::linear_algebra::spectral::{Svd, product, singular_values};
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, MATRIX, MatrixKernel, MatrixMethod, RANK_TOLERANCE, Tasks, VECTORS,
};
use crate::methods::parameters::{Fallback, ParameterSpec, SHARE};
use crate::methods::thinning::consensus::LAMBDA;
use crate::methods::tsv_m::joined;

/// ## What it does
/// Gives directions of the sum of the task vectors and directions of each model one size (Iso-CTS). A matrix has r
/// directions. The first singular vectors of `Σ Dᵢ` take about the share `common_space_fraction` of them. Each model
/// gets an equal part of the rest: the first singular vectors of its task vector without its projection on the common
/// left ones. With `U` and `V` all of them beside each other, `s̄` the sum of their singular values over r, and `polar`
/// as in `tsv_m`, `W = b + λ s̄ polar(U) polar(V)`. Tensors that are no matrices take the mean of the task vectors
/// times λ.
///
/// The number of directions of the models is rounded to a multiple of the number of models, to even at half, and down
/// where it would exceed r. Singular values up to `rank_tolerance` of the largest count as none, and directions
/// without a singular value stay empty.
/// ## Why
/// A space that all models share has no room for directions of one task, so each model gets its own.
/// ## Cost
/// Singular value decompositions of the sum and of each task vector, in f64. A single large matrix does not use all
/// cores.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `common_space_fraction` | 0.8 | `[0, 1]` | share of the directions that are common; 1 gives `iso_c` |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `rank_tolerance` | 1e-10 | `[0, 1]` | singular values up to this share of the largest count as none; raise it for adapters that were merged into rounded weights |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
/// <https://arxiv.org/abs/2502.04959>, Iso-CTS.
/// # Errors
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct IsoCts;

impl MatrixMethod for IsoCts {
    const NAME: &'static str = "iso_cts";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared("common_space_fraction", SHARE, Fallback::Number(0.8)),
        LAMBDA,
        RANK_TOLERANCE,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let fraction = group.values.number("common_space_fraction");
        let dimensions = Dimensions::of(size.0.min(size.1), group.members.len(), fraction);
        Ok(Box::new(Shared {
            dimensions,
            lambda: group.values.number("lambda"),
            tolerance: group.values.number("rank_tolerance"),
        }))
    }
}

/// The number of common directions, and of each task's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dimensions {
    common: usize,
    per_task: usize,
}

impl Dimensions {
    fn of(rank: usize, n_tasks: usize, fraction: f64) -> Self {
        let n_tasks = n_tasks.max(1);
        let common = (rank as f64 * fraction) as usize;
        let rest = (rank - common.min(rank)) as f64 / n_tasks as f64;
        let mut per_task = rest.round_ties_even() as usize;
        if per_task * n_tasks > rank {
            per_task = rank / n_tasks;
        }
        Self {
            common: rank - per_task * n_tasks,
            per_task,
        }
    }
}

struct Shared {
    dimensions: Dimensions,
    lambda: f64,
    tolerance: f64,
}

impl MatrixKernel for Shared {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let Dimensions { common, per_task } = self.dimensions;
        let sum = tasks.sum(&vec![1.0; tasks.len()])?;
        let whole = tasks.converged(Svd::of(sum.view()))?;
        let largest = whole.largest();
        let shared = whole.cut(common).above(self.tolerance * largest);
        let mut parts = match per_task {
            0 => Vec::new(),
            _ => tasks.each(|_, task| {
                let largest = tasks.converged(singular_values(task.view()))?;
                let largest = largest.first().copied().unwrap_or(0.0);
                let inner = product(shared.left.t(), task.view());
                let rest = task - product(shared.left.view(), inner.view());
                let own = tasks.converged(Svd::leading(rest.view(), per_task))?;
                Ok(own.above(self.tolerance * largest))
            })?,
        };
        parts.push(shared);
        let values = parts.iter().flat_map(|part| &part.values);
        let mean = values.sum::<f64>() / tasks.full_rank() as f64;
        if mean == 0.0 {
            return Ok(Array2::zeros(tasks.size()));
        }
        let (left, right) = joined(tasks, &parts)?;
        Ok(product(left.view(), right.view()) * (self.lambda * mean))
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        6 * rows * columns + 4 * rows.min(columns) * (rows + columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_dealt_out_in_whole_shares() {
        let of = |rank, n, fraction| {
            let found = Dimensions::of(rank, n, fraction);
            (found.common, found.per_task)
        };
        // (20 − 16) / 4 = 1 each.
        assert_eq!(of(20, 4, 0.8), (16, 1));
        // (20 − 16) / 3 = 1.33.
        assert_eq!(of(20, 3, 0.8), (17, 1));
        // 20 / 3 = 6.67 would be 21 of 20.
        assert_eq!(of(20, 3, 0.0), (2, 6));
        // Half: (10 − 5) / 2 = 2.5, to even.
        assert_eq!(of(10, 2, 0.5), (6, 2));
        assert_eq!(of(24, 3, 1.0), (24, 0));
    }
}
