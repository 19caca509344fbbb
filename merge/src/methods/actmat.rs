use ndarray::Array2;

use crate::Result;
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, MATRIX, MatrixKernel, MatrixMethod, Quadratic, Tasks, VECTORS,
};
use crate::methods::parameters::{Fallback, Kind, NOT_NEGATIVE, ParameterSpec};
use crate::recipe::Parameters;

/// `regmean` with `grams: task_vectors`: the gram matrices of the inputs are guessed from the task vectors, so that
/// no data are needed. The manual stands at `RegMean`.
///
/// # Errors
/// [`MergeFault::WeightsSumToZero`](crate::MergeFault::WeightsSumToZero);
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct ActMat;

/// The value of `grams` for this method.
const TASK_VECTORS: &str = "task_vectors";

impl ActMat {
    /// Whether parameters of a recipe ask for it rather than for `regmean` with a file of gram matrices.
    pub(crate) fn is_meant(parameters: &Parameters) -> bool {
        matches!(parameters.text("grams"), Ok(Some(TASK_VECTORS)))
    }
}

impl MatrixMethod for ActMat {
    const NAME: &'static str = "regmean";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared(
            "grams",
            Kind::Choice {
                names: &[TASK_VECTORS],
                yes: "",
                no: "",
            },
            Fallback::Required,
        ),
        ParameterSpec::per_member("weight", NOT_NEGATIVE, Fallback::Number(1.0)),
        ParameterSpec::shared("ridge", NOT_NEGATIVE, Fallback::Number(0.0)),
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        Ok(Box::new(LeastSquares {
            weights: group.values.shares(&group.slot.key, true)?,
            total: group.values.numbers("weight").iter().sum(),
            ridge: group.values.number("ridge"),
            tolerance: size.1 as f64 * f64::EPSILON,
        }))
    }

    fn vector_factors(group: &GroupShape<'_>) -> Result<Vec<f64>> {
        group.values.shares(&group.slot.key, true)
    }
}

struct LeastSquares {
    /// Shares of the models.
    weights: Vec<f64>,
    /// The sum of the weights as given, which the ridge is measured by.
    total: f64,
    ridge: f64,
    tolerance: f64,
}

impl MatrixKernel for LeastSquares {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let ones = vec![1.0; tasks.len()];
        let equations = Quadratic::of(tasks, &ones, |index, _| self.weights[index])?;
        equations.solved(tasks, self.ridge / self.total, self.tolerance)
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        Quadratic::peak_elements(rows, columns)
    }
}
