use ndarray::Array2;

use crate::Result;
use crate::linear_algebra::spectral::{Svd, product, scaled_product};
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, MATRIX, MatrixKernel, MatrixMethod, Tasks, VECTORS, squared_norm,
};
use crate::methods::parameters::{Fallback, POSITIVE, ParameterSpec, SHARE, WHOLE};
use crate::methods::thinning::consensus::LAMBDA;

/// ## What it does
/// Steps from the mean of the task vectors towards each one's largest singular vectors (OptMerge, "WUDI v2"). With
/// `Kᵢ = Uᵢ Sᵢ Vᵢ` the first `⌊r / T⌋` singular values and vectors of `Dᵢ`, for T models and a shorter side of r,
/// gradient descent with momentum lessens `Σ |(M − Kᵢ) Vᵢᵀ Sᵢ|² / |Dᵢ|²`, and `W = b + λ M`. Task vectors that are
/// zero take no part in the steps. Tensors that are no matrices take the mean of the task vectors times λ. The steps
/// are as published and end before they converge.
/// ## Why
/// As `wudi`, with the noise of small singular values cut off.
/// ## Cost
/// A singular value decomposition of each task vector, and matrix products in each of the `iterations` steps, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `iterations` | 300 | whole numbers | steps |
/// | `learning_rate` | 1e-4 | above 0 | size of a step |
/// | `momentum` | 0.9 | `[0, 1]` | share of the last step that is taken again |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Wei et al. 2025, "Unifying Multimodal Large Language Model Capabilities and Modalities via Model Merging",
/// <https://arxiv.org/abs/2505.19892>, OptMerge.
/// # Errors
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct OptMerge;

impl MatrixMethod for OptMerge {
    const NAME: &'static str = "optmerge";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared("iterations", WHOLE, Fallback::Number(300.0)),
        ParameterSpec::shared("learning_rate", POSITIVE, Fallback::Number(1e-4)),
        ParameterSpec::shared("momentum", SHARE, Fallback::Number(0.9)),
        LAMBDA,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        Ok(Box::new(Descent {
            rank: size.0.min(size.1) / group.members.len().max(1),
            iterations: group.values.number("iterations") as usize,
            rate: group.values.number("learning_rate"),
            momentum: group.values.number("momentum"),
            lambda: group.values.number("lambda"),
        }))
    }
}

struct Descent {
    rank: usize,
    iterations: usize,
    rate: f64,
    momentum: f64,
    lambda: f64,
}

impl MatrixKernel for Descent {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let parts = tasks.each(|_, task| {
            let norm = squared_norm(&task);
            Ok((norm, tasks.converged(Svd::leading(task.view(), self.rank))?))
        })?;
        let (rows, columns) = tasks.size();
        let mut gram = Array2::zeros((columns, columns));
        let mut target = Array2::zeros((rows, columns));
        for (norm, part) in parts.iter().filter(|(norm, _)| *norm > 0.0) {
            let power = |n: i32| -> Vec<f64> {
                let values = part.values.iter();
                values.map(|value| value.powi(n) / norm).collect()
            };
            gram += &scaled_product(part.right.t(), &power(2), part.right.view());
            target += &scaled_product(part.left.view(), &power(3), part.right.view());
        }
        let mut merged = tasks.mean()?;
        let mut step = Array2::<f64>::zeros(merged.dim());
        for _ in 0..self.iterations {
            let gradient = (product(merged.view(), gram.view()) - &target) * 2.0;
            step = step * self.momentum + gradient;
            merged.scaled_add(-self.rate, &step);
        }
        Ok(merged * self.lambda)
    }

    fn peak_elements(&self, rows: u64, columns: u64, n_tasks: u64) -> u64 {
        let kept = self.rank as u64 * n_tasks;
        6 * rows * columns + 2 * columns * columns + kept * (rows + columns)
    }
}
