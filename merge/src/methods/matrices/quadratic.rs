//! The least squares over directions of task vectors, `Σ |(M − Dᵢ) Dᵢᵀ|² / sᵢ`: `M C = B` with `C = Σ DᵢᵀDᵢ / sᵢ` and
//! `B = Σ Dᵢ DᵢᵀDᵢ / sᵢ`.

use ndarray::Array2;

use super::Tasks;
use crate::Result;
use crate::linear_algebra::spectral::{Eigen, product};

/// Both sides of the equations.
pub(in crate::methods) struct Quadratic {
    /// `C`, `(columns, columns)`.
    pub gram: Array2<f64>,
    /// `B`, `(rows, columns)`.
    pub target: Array2<f64>,
    /// Squared norms of the task vectors.
    pub norms: Vec<f64>,
}

impl Quadratic {
    /// Of all task vectors, each times its factor in `B`; `share` is `1 / sᵢ` by number and squared norm, and a task
    /// vector with a share of 0 takes no part.
    pub(in crate::methods) fn of(
        tasks: &Tasks<'_>,
        factors: &[f64],
        share: impl Fn(usize, f64) -> f64,
    ) -> Result<Self> {
        let (rows, columns) = tasks.size();
        let mut all = Self {
            gram: Array2::zeros((columns, columns)),
            target: Array2::zeros((rows, columns)),
            norms: Vec::with_capacity(tasks.len()),
        };
        for (index, &factor) in factors.iter().enumerate() {
            let task = tasks.of(index)?;
            let norm = squared_norm(&task);
            all.norms.push(norm);
            let share = share(index, norm);
            if share == 0.0 {
                continue;
            }
            let gram = product(task.t(), task.view());
            let target = product(task.view(), gram.view());
            all.target.scaled_add(share * factor, &target);
            all.gram.scaled_add(share, &gram);
        }
        Ok(all)
    }

    /// The solution of least norm: eigenvalues of `C` up to `tolerance` of the largest count as 0. With a `ridge`
    /// that is added to the diagonal, all count.
    pub(in crate::methods) fn solved(
        &self,
        tasks: &Tasks<'_>,
        ridge: f64,
        tolerance: f64,
    ) -> Result<Array2<f64>> {
        let eigen = tasks.converged(Eigen::of(&self.gram))?;
        let largest = eigen.values.first().copied().unwrap_or(0.0).max(0.0);
        let least = if ridge > 0.0 {
            0.0
        } else {
            tolerance * largest
        };
        Ok(eigen.applied(&self.target, |value| {
            let value = value.max(0.0) + ridge;
            match value > least {
                true => 1.0 / value,
                false => 0.0,
            }
        }))
    }

    /// The most elements that building and solving hold at once.
    pub(in crate::methods) const fn peak_elements(rows: u64, columns: u64) -> u64 {
        4 * rows * columns + 5 * columns * columns
    }
}

/// Sum of squares.
pub(in crate::methods) fn squared_norm(matrix: &Array2<f64>) -> f64 {
    matrix.iter().map(|value| value * value).sum()
}
