//! The least squares of `wudi` on the largest eigenvalues alone, which `swudi` and `aswudi` share.

use ndarray::Array2;

use super::{MatrixKernel, Quadratic, Tasks};
use crate::Result;
use crate::linear_algebra::spectral::Eigen;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, Values};

/// Squared norms are divided by at least this, as published; if none reaches it, the mean is taken.
const LEAST_NORM: f64 = 1e-12;

/// `start` as both methods take it.
pub(in crate::methods) const START: ParameterSpec = ParameterSpec::shared(
    "start",
    Kind::Choice {
        names: &["sum", "mean", "zero"],
        yes: "",
        no: "",
    },
    Fallback::Text("sum"),
);

/// The factor on each eigenvalue's part of the solution, by the eigenvalues, the largest first, and the sizes of the
/// matrix.
pub(in crate::methods) type Filter = Box<dyn Fn(&[f64], (usize, usize)) -> Vec<f64> + Send + Sync>;

/// `T₀ − T₀ V diag(f) Vᵀ + B V diag(f / e) Vᵀ`, times λ.
pub(in crate::methods) struct Filtered {
    /// `sum`, `mean` or `zero`.
    start: String,
    /// Eigenvalues below it are raised to it.
    min_eigenvalue: f64,
    /// `f`.
    filter: Filter,
    /// λ.
    lambda: f64,
}

impl Filtered {
    /// With `start`, `min_eigenvalue` and `lambda` of the recipe.
    pub fn boxed(values: &Values, filter: Filter) -> Box<dyn MatrixKernel> {
        Box::new(Self {
            start: values.text("start").unwrap_or_default().to_owned(),
            min_eigenvalue: values.number("min_eigenvalue"),
            filter,
            lambda: values.number("lambda"),
        })
    }
}

impl MatrixKernel for Filtered {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let n = tasks.len();
        let ones = vec![1.0; n];
        let share = |_, norm: f64| 1.0 / norm.max(LEAST_NORM);
        let equations = Quadratic::of(tasks, &ones, share)?;
        let largest = equations.norms.iter().fold(0.0, |a, &b| f64::max(a, b));
        if largest < LEAST_NORM {
            return Ok(tasks.mean()? * self.lambda);
        }
        let mut eigen = tasks.converged(Eigen::of(&equations.gram))?;
        for value in &mut eigen.values {
            *value = value.max(self.min_eigenvalue);
        }
        let factors = (self.filter)(&eigen.values, tasks.size());
        let solving: Vec<f64> = (factors.iter().zip(&eigen.values))
            .map(|(factor, value)| factor / value)
            .collect();
        let mut merged = eigen.weighted(&equations.target, &solving);
        let start = match self.start.as_str() {
            "zero" => return Ok(merged * self.lambda),
            "mean" => tasks.mean()?,
            _ => tasks.sum(&ones)?,
        };
        merged -= &eigen.weighted(&start, &factors);
        merged += &start;
        Ok(merged * self.lambda)
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        Quadratic::peak_elements(rows, columns) + 2 * rows * columns
    }
}

/// 1 for the first `rank` of `n`, and 0 for the others.
pub(in crate::methods) fn first(rank: usize, n: usize) -> Vec<f64> {
    let factor = |index| if index < rank { 1.0 } else { 0.0 };
    (0..n).map(factor).collect()
}
