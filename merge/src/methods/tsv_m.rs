use ndarray::{Array2, Axis};

use crate::Result;
use crate::linear_algebra::spectral::{Svd, polar, scaled_product};
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, FACTOR, MATRIX, MatrixKernel, MatrixMethod, RANK_TOLERANCE, Tasks, VECTORS, rank_at_most,
};
use crate::methods::parameters::{Fallback, ParameterSpec, WHOLE};
use crate::methods::thinning::consensus::LAMBDA;

/// ## What it does
/// Keeps the largest singular vectors of each task vector and makes those of all models orthogonal, so that models do
/// not disturb each other (TSV-Merge). For T models and a matrix of rank r at most, each task vector `Dᵢ = Uᵢ Sᵢ Vᵢ`
/// keeps its first `⌊r / T⌋` singular values, and `W = b + λ polar([U₁ … U_T]) diag(S₁ … S_T) polar([V₁; …; V_T])`,
/// where `polar` is the nearest matrix with orthonormal rows or columns. Tensors that are no matrices take the mean
/// of the task vectors times λ.
///
/// Singular values up to `rank_tolerance` of the largest of their matrix count as none, and `polar` leaves directions
/// below 1e-6 of the largest empty. A task vector of zeros or of low rank, or two equal ones, would otherwise add
/// arbitrary directions of full size. A matrix with fewer rows or columns than there are models keeps the base,
/// unless `min_rank` says otherwise.
/// ## Why
/// Task vectors are of low rank, and they disturb each other where their singular vectors overlap.
/// ## Cost
/// A singular value decomposition of each task vector of each matrix, in f64. A single large matrix does not use
/// all cores.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | 1, per model | any number | factor on the model's task vector, before it is decomposed |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `min_rank` | 0 | whole numbers | singular values that each model keeps at least |
/// | `rank_tolerance` | 1e-10 | `[0, 1]` | singular values up to this share of the largest count as none; raise it for adapters that were merged into rounded weights |
/// | `matrix` | `auto` | `auto`, yes, no | which tensors are matrices; `auto`: linear weights that are no embedding, head or table of positions; yes: all with two axes |
/// | `conv` | `vector` | `vector`, `flatten` | `flatten` makes weights of convolutions matrices of their outputs by all else |
/// | `vectors` | `mean` | `mean`, `base` | the value of tensors that are no matrices |
/// ## References
/// Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging",
/// <https://arxiv.org/abs/2412.00081>.
/// # Errors
/// [`MergeFault::BadValue`](crate::MergeFault::BadValue) for a `min_rank` above that of a matrix;
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct TsvM;

impl MatrixMethod for TsvM {
    const NAME: &'static str = "tsv_m";
    const PARAMETERS: &'static [ParameterSpec] = &[
        FACTOR,
        LAMBDA,
        ParameterSpec::shared("min_rank", WHOLE, Fallback::Number(0.0)),
        RANK_TOLERANCE,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let least = rank_at_most(group, "min_rank", size)?;
        Ok(Box::new(Orthogonal {
            weights: group.values.numbers("weight"),
            lambda: group.values.number("lambda"),
            tolerance: group.values.number("rank_tolerance"),
            rank: (size.0.min(size.1) / group.members.len().max(1)).max(least),
        }))
    }
}

struct Orthogonal {
    weights: Vec<f64>,
    lambda: f64,
    tolerance: f64,
    /// Singular values that each task vector keeps.
    rank: usize,
}

impl MatrixKernel for Orthogonal {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let parts = tasks.each(|index, task| {
            let task = task * self.weights[index];
            let found = tasks.converged(Svd::leading(task.view(), self.rank))?;
            let largest = found.largest();
            Ok(found.above(self.tolerance * largest))
        })?;
        let values: Vec<f64> = parts.iter().flat_map(|part| part.values.clone()).collect();
        if values.is_empty() {
            return Ok(Array2::zeros(tasks.size()));
        }
        let (left, right) = joined(tasks, &parts)?;
        Ok(scaled_product(left.view(), &values, right.view()) * self.lambda)
    }

    fn peak_elements(&self, rows: u64, columns: u64, n_tasks: u64) -> u64 {
        let kept = self.rank as u64 * n_tasks;
        rows * columns * 5 + 3 * kept * (rows + columns)
    }
}

/// The nearest orthonormal columns of all left singular vectors beside each other, and rows of all right ones.
pub(super) fn joined(tasks: &Tasks<'_>, parts: &[Svd]) -> Result<(Array2<f64>, Array2<f64>)> {
    let left: Vec<_> = parts.iter().map(|part| part.left.view()).collect();
    let right: Vec<_> = parts.iter().map(|part| part.right.view()).collect();
    // All have as many rows, or columns, as the matrix.
    let left = ndarray::concatenate(Axis(1), &left).unwrap_or_default();
    let right = ndarray::concatenate(Axis(0), &right).unwrap_or_default();
    let (left, right) = rayon::join(|| polar(left.view()), || polar(right.view()));
    Ok((tasks.converged(left)?, tasks.converged(right)?))
}
