use ndarray::Array2;

use crate::Result;
use crate::linear_algebra::spectral::Svd;
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, FACTOR, MATRIX, MatrixKernel, MatrixMethod, Tasks, VECTORS, too_large,
};
use crate::methods::parameters::{FINITE, Fallback, Kind, ParameterSpec};

/// ## What it does
/// Adds the distinctive part of each model at a low rank to the mean of all: with `A` the mean of the task vectors
/// `Dᵢ` and `Rᵢ` the first k singular values and vectors of `Dᵢ − A`, `W = b + A + λ Σ wᵢ Rᵢ`. Tensors that are no
/// matrices take the mean.
/// ## Why
/// Around the mean of the models each one differs along few directions; around the base the directions overlap.
/// ## Cost
/// A singular value decomposition of each model's matrix, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `rank` | 0.5 | a share above 0, or a whole number above 1 | k; a share of the shorter side is rounded up. The paper finds about 0.08 best |
/// | `lambda` | 0.5 | any number | factor on the distinctive part |
/// | `weight` | 1, per model | any number | factor on the distinctive part of this model |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Choi et al. 2024, "Revisiting Weight Averaging for Model Merging", <https://arxiv.org/abs/2412.12153>, CART.
/// # Errors
/// [`MergeFault::BadValue`](crate::MergeFault::BadValue) for a whole `rank` above the shorter side of a matrix;
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct Cart;

const RANK: Kind = Kind::Number {
    range: "a share above 0 and up to 1, or a whole number",
    holds: |rank| rank > 0.0 && (rank <= 1.0 || rank.fract() == 0.0),
};

impl MatrixMethod for Cart {
    const NAME: &'static str = "cart";
    const PARAMETERS: &'static [ParameterSpec] = &[
        FACTOR,
        ParameterSpec::shared("rank", RANK, Fallback::Number(0.5)),
        ParameterSpec::shared("lambda", FINITE, Fallback::Number(0.5)),
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let full = size.0.min(size.1);
        let rank = match group.values.number("rank") {
            share if share <= 1.0 => (share * full as f64).ceil() as usize,
            rank if rank > full as f64 => return Err(too_large(group, "rank", size)),
            rank => rank as usize,
        };
        Ok(Box::new(Centered {
            rank,
            weights: group.values.numbers("weight"),
            lambda: group.values.number("lambda"),
        }))
    }

    fn vector_factors(group: &GroupShape<'_>) -> Result<Vec<f64>> {
        let n = group.members.len();
        Ok(vec![1.0 / n as f64; n])
    }
}

struct Centered {
    rank: usize,
    weights: Vec<f64>,
    lambda: f64,
}

impl MatrixKernel for Centered {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let mean = tasks.mean()?;
        let parts = tasks.each(|_, task| {
            let rest = task - &mean;
            tasks.converged(Svd::leading(rest.view(), self.rank))
        })?;
        let mut change = mean;
        for (part, weight) in parts.iter().zip(&self.weights) {
            change.scaled_add(self.lambda * weight, &part.product());
        }
        Ok(change)
    }

    fn peak_elements(&self, rows: u64, columns: u64, n_tasks: u64) -> u64 {
        let kept = self.rank as u64 * n_tasks;
        6 * rows * columns + kept * (rows + columns)
    }
}
