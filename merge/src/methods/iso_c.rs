use ndarray::Array2;

use crate::Result;
use crate::linear_algebra::spectral::polar_and_values;
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, FACTOR, MATRIX, MatrixKernel, MatrixMethod, RANK_TOLERANCE, Tasks, VECTORS,
};
use crate::methods::parameters::ParameterSpec;
use crate::methods::thinning::consensus::LAMBDA;

/// ## What it does
/// Sums the task vectors of a matrix and makes all singular values of the sum equal: with `Σ wᵢ Dᵢ = U S V`, `W = b +
/// λ mean(S) U V`, the mean over as many values as the shorter side has. Tensors that are no matrices take the mean
/// of the task vectors times λ. A single model does not come back: its spectrum is made flat, too.
///
/// Singular values up to `rank_tolerance` of the largest count as none, and directions without a singular value stay
/// empty.
/// ## Why
/// A sum of task vectors has a few strong directions, which drown those of single tasks. Equal singular values give
/// all of them a say.
/// ## Cost
/// A singular value decomposition of each matrix, in f64. A single large matrix does not use all cores.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | 1, per model | any number | factor on the model's task vector |
/// | `lambda` | 1 | any number | factor on the merged task vector; the paper tunes it, about 1.5 for 8 tasks |
/// | `rank_tolerance` | 1e-10 | `[0, 1]` | singular values up to this share of the largest count as none; raise it for adapters that were merged into rounded weights |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
/// <https://arxiv.org/abs/2502.04959>, Iso-C.
/// # Errors
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct IsoC;

impl MatrixMethod for IsoC {
    const NAME: &'static str = "iso_c";
    const PARAMETERS: &'static [ParameterSpec] =
        &[FACTOR, LAMBDA, RANK_TOLERANCE, MATRIX, CONV, VECTORS];

    fn kernel(group: &GroupShape<'_>, _: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        Ok(Box::new(Flat {
            weights: group.values.numbers("weight"),
            lambda: group.values.number("lambda"),
            tolerance: group.values.number("rank_tolerance"),
        }))
    }
}

struct Flat {
    weights: Vec<f64>,
    lambda: f64,
    tolerance: f64,
}

impl MatrixKernel for Flat {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let sum = tasks.sum(&self.weights)?;
        let found = polar_and_values(sum.view(), self.tolerance);
        let (nearest, values) = tasks.converged(found)?;
        let mean = values.iter().sum::<f64>() / tasks.full_rank() as f64;
        Ok(nearest * (self.lambda * mean))
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        5 * rows * columns + 2 * rows.min(columns) * (rows + columns)
    }
}
