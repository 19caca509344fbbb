use ndarray::{Array1, Array2, Axis};

use crate::Result;
use crate::linear_algebra::spectral::{Eigen, Svd, product};
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, MATRIX, MatrixKernel, MatrixMethod, RANK_TOLERANCE, Tasks, VECTORS, squared_norm,
};
use crate::methods::parameters::{Fallback, NOT_NEGATIVE, POSITIVE, ParameterSpec, SHARE};
use crate::methods::thinning::consensus::LAMBDA;

/// ## What it does
/// Takes the covariance of the rows of each task vector for that of the layer's inputs, and solves the least squares that
/// these make. With `Eᵢ` the task vector `Dᵢ` without the mean of its rows, `Sᵢ = sᵢ EᵢᵀEᵢ`, `S'ᵢ = Sᵢ + sᵢ ε I`,
/// `P = Σ S'ᵢ` and `c` the mean of the rows of `Σ Sᵢ`, `M = (Σ Eᵢ S'ᵢ) (P + 1 cᵀ)⁻¹`, which adds `c` to every row of `P`, and
/// `W = b + λ M`. Tensors that are no matrices take the mean of the task vectors times λ.
///
/// A matrix is uneven where the squared lengths `tᵢ = |Dᵢ|²` differ: `var(log tᵢ) / mean(log tᵢ)²` is above `heterogeneity`.
/// There each covariance counts by its own size, `sᵢ = 1 / tr(EᵢᵀEᵢ)`, and `c` is divided by the mean of `tᵢ`; elsewhere
/// `sᵢ` is 1. Of an uneven matrix the first k singular vectors of `M + Σ Dᵢ (Sᵢ − P / T)` are added to `M`, all with the mean
/// of their singular values.
///
/// A task vector whose rows are all alike has no covariance and takes no part; where none has any, the change is the mean.
/// A single model does not come back.
/// ## Why
/// Inputs of a layer have a covariance, which fine-tuning leaves in the task vector.
/// ## Cost
/// A factorization of a matrix of columns by columns for each matrix, and for uneven ones singular vectors, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `ridge` | 0.01 | above 0 | ε, as it is: where covariances are much smaller, the result is near the mean of `Eᵢ` |
/// | `heterogeneity` | 0.3 | `≥ 0` | from where on a matrix is uneven |
/// | `rank` | 0.3 | `[0, 1]` | k, as a share of the shorter side, rounded down |
/// | `rank_tolerance` | 1e-10 | `[0, 1]` | of these singular values, those up to this share of the largest count as none |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Xu et al. 2026, "ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation",
/// <https://arxiv.org/abs/2603.02945>, by its program, <https://github.com/unravel-xu/ACE-Merging>.
/// # Errors
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct Ace;

/// Added to squared lengths before they are divided by or their logarithm is taken, as published.
const LEAST: f64 = 1e-12;

/// Rows whose squared deviations are up to this share of their squares are alike: the rest is rounding of their mean.
const LEAST_COVARIANCE: f64 = f64::EPSILON;

impl MatrixMethod for Ace {
    const NAME: &'static str = "ace";
    const PARAMETERS: &'static [ParameterSpec] = &[
        LAMBDA,
        ParameterSpec::shared("ridge", POSITIVE, Fallback::Number(1e-2)),
        ParameterSpec::shared("heterogeneity", NOT_NEGATIVE, Fallback::Number(0.3)),
        ParameterSpec::shared("rank", SHARE, Fallback::Number(0.3)),
        RANK_TOLERANCE,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let full = size.0.min(size.1) as f64;
        Ok(Box::new(Covariances {
            lambda: group.values.number("lambda"),
            ridge: group.values.number("ridge"),
            heterogeneity: group.values.number("heterogeneity"),
            rank: (full * group.values.number("rank")) as usize,
            tolerance: group.values.number("rank_tolerance"),
        }))
    }
}

struct Covariances {
    lambda: f64,
    ridge: f64,
    heterogeneity: f64,
    rank: usize,
    tolerance: f64,
}

/// A task vector that takes part.
struct Part {
    index: usize,
    /// `tᵢ`.
    norm: f64,
    /// `tr(EᵢᵀEᵢ)`.
    trace: f64,
}

impl MatrixKernel for Covariances {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let mut parts = Vec::with_capacity(tasks.len());
        for index in 0..tasks.len() {
            let task = tasks.of(index)?;
            let norm = squared_norm(&task);
            let trace = squared_norm(&centered(task));
            if trace > LEAST_COVARIANCE * norm {
                parts.push(Part { index, norm, trace });
            }
        }
        if parts.is_empty() {
            return Ok(tasks.mean()? * self.lambda);
        }
        let is_uneven = heterogeneity(&parts) > self.heterogeneity;
        let merged = match is_uneven {
            true => self.uneven(tasks, &parts)?,
            false => self.solved(tasks, &parts, |_| 1.0, 1.0)?.merged,
        };
        Ok(merged * self.lambda)
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        let refined = 2 * rows.min(columns) * (rows + columns);
        6 * rows * columns + 5 * columns * columns + refined
    }
}

/// The least squares of all that take part.
struct Solved {
    /// `M`.
    merged: Array2<f64>,
    /// `Σ Sᵢ`.
    covariance: Array2<f64>,
    /// The numbers that `P` has on the diagonal beside it.
    ridge: f64,
}

impl Covariances {
    /// The solution where each covariance counts by `share`, and `c` is divided by `size`.
    fn solved(
        &self,
        tasks: &Tasks<'_>,
        parts: &[Part],
        share: impl Fn(&Part) -> f64,
        size: f64,
    ) -> Result<Solved> {
        let (rows, columns) = tasks.size();
        let mut covariance = Array2::<f64>::zeros((columns, columns));
        let mut target = Array2::<f64>::zeros((rows, columns));
        let mut ridge = 0.0;
        for part in parts {
            let share = share(part);
            let task = centered(tasks.of(part.index)?);
            let own = product(task.t(), task.view()) * share;
            target += &product(task.view(), own.view());
            target.scaled_add(share * self.ridge, &task);
            covariance += &own;
            ridge += share * self.ridge;
        }
        let eigen = tasks.converged(Eigen::of(&covariance))?;
        let inverse = |value: f64| 1.0 / (value.max(0.0) + ridge);
        let prior = row_mean(&covariance) / size;
        // (P + 1 cᵀ)⁻¹ = P⁻¹ − P⁻¹ 1 cᵀ P⁻¹ / (1 + cᵀ P⁻¹ 1), whose divisor is 1 or more, for P and Σ Sᵢ commute.
        let mut merged = eigen.applied(&target, inverse);
        let prior = eigen.applied(&prior.insert_axis(Axis(0)), inverse);
        let sums = merged.sum_axis(Axis(1)).insert_axis(Axis(1));
        merged.scaled_add(
            -1.0 / (1.0 + prior.sum()),
            &product(sums.view(), prior.view()),
        );
        Ok(Solved {
            merged,
            covariance,
            ridge,
        })
    }

    /// The solution of an uneven matrix, with its first singular vectors added.
    fn uneven(&self, tasks: &Tasks<'_>, parts: &[Part]) -> Result<Array2<f64>> {
        let n = parts.len() as f64;
        let share = |part: &Part| 1.0 / (part.trace + LEAST);
        let size = parts.iter().map(|part| part.norm).sum::<f64>() / n + LEAST;
        let Solved {
            mut merged,
            covariance,
            ridge,
        } = self.solved(tasks, parts, share, size)?;
        if self.rank == 0 {
            return Ok(merged);
        }
        let mut refined = merged.clone();
        let mut sum = Array2::<f64>::zeros(merged.dim());
        for part in parts {
            let task = tasks.of(part.index)?;
            let centered = centered(task.clone());
            let own = product(centered.t(), centered.view()) * share(part);
            refined += &product(task.view(), own.view());
            sum += &task;
        }
        refined.scaled_add(-1.0 / n, &product(sum.view(), covariance.view()));
        refined.scaled_add(-ridge / n, &sum);
        let first = tasks.converged(Svd::leading(refined.view(), self.rank))?;
        let mean = first.values.iter().sum::<f64>() / self.rank as f64;
        let least = self.tolerance * first.largest();
        let kept = first.above(least);
        merged.scaled_add(mean, &product(kept.left.view(), kept.right.view()));
        Ok(merged)
    }
}

/// A task vector without the mean of its rows.
fn centered(task: Array2<f64>) -> Array2<f64> {
    let mean = row_mean(&task);
    task - &mean
}

/// The mean over the rows of a matrix.
fn row_mean(matrix: &Array2<f64>) -> Array1<f64> {
    matrix.sum_axis(Axis(0)) / matrix.nrows().max(1) as f64
}

/// How far the sizes of task vectors differ: the variance of their logarithms by the square of the mean; 0 of one.
fn heterogeneity(parts: &[Part]) -> f64 {
    let logs = parts.iter().map(|part| (part.norm + LEAST).ln());
    let logs: Vec<f64> = logs.collect();
    let n = logs.len() as f64;
    if logs.len() < 2 {
        return 0.0;
    }
    let mean = logs.iter().sum::<f64>() / n;
    let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
    squares / (n - 1.0) / (mean * mean + LEAST)
}
