use ndarray::{Array2, Zip};

use crate::linear_algebra::spectral::product;
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, FACTOR, MATRIX, MatrixKernel, MatrixMethod, Quadratic, Tasks, VECTORS,
};
use crate::methods::parameters::{
    Fallback, Kind, NOT_NEGATIVE, POSITIVE, ParameterSpec, SHARE, WHOLE,
};
use crate::methods::thinning::consensus::LAMBDA;
use crate::{Error, Result};

/// ## What it does
/// Finds the matrix `M` whose difference from each task vector `Dᵢ` is least along the directions of that task
/// vector: `Σ |(M − Dᵢ) Dᵢᵀ|² / |Dᵢ|²` is smallest, and `W = b + λ M`. Task vectors that are zero take no part.
/// Tensors that are no matrices take the mean of the task vectors times λ.
///
/// `solver: closed` solves `M C = B`, with `C = Σ DᵢᵀDᵢ / |Dᵢ|²` and `B = Σ wᵢ Dᵢ DᵢᵀDᵢ / |Dᵢ|²`, for the `M` of
/// least norm; a `ridge` is added to the diagonal of `C`. It is where `solver: adam` goes, the published program,
/// which starts from `Σ wᵢ Dᵢ` and takes a few hundred steps of Adam. Its steps are absolute, at most about
/// `learning_rate` an element, so that its result depends on the size of the task vectors and stays near their sum.
/// ## Why
/// Rows of a task vector stand for the inputs that made it, so a change outside of them disturbs that task little.
/// ## Cost
/// An eigenvalue decomposition for each matrix, of its columns by its columns, in f64; `solver: adam` takes
/// products with such a matrix, one a step.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `solver` | `closed` | `closed`, `adam` | the solution itself, or the published steps towards it |
/// | `ridge` | 0 | `≥ 0` | of `closed`: added to the diagonal of `C` |
/// | `rank_tolerance` | 1e-10 | `[0, 1]` | of `closed` without a ridge: eigenvalues of `C` up to this share of the largest count as 0 |
/// | `iterations` | 300 | whole numbers | of `adam` |
/// | `learning_rate` | 1e-5 | above 0 | of `adam` |
/// | `weight` | 1, per model | any number | factor on the model's task vector |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// Cheng et al. 2025, "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
/// Vectors", <https://arxiv.org/abs/2503.08099>, WUDI.
/// # Errors
/// [`Error::MethodHasNoUse`] for a parameter of the other solver;
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct Wudi;

const SOLVER: Kind = Kind::Choice {
    names: &["closed", "adam"],
    yes: "",
    no: "",
};

/// Adam's factors on the running means, and the number added to the root, as published.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

impl MatrixMethod for Wudi {
    const NAME: &'static str = "wudi";
    const PARAMETERS: &'static [ParameterSpec] = &[
        FACTOR,
        LAMBDA,
        ParameterSpec::shared("solver", SOLVER, Fallback::Text("closed")),
        ParameterSpec::shared("ridge", NOT_NEGATIVE, Fallback::Absent),
        ParameterSpec::shared("rank_tolerance", SHARE, Fallback::Absent),
        ParameterSpec::shared("iterations", WHOLE, Fallback::Absent),
        ParameterSpec::shared("learning_rate", POSITIVE, Fallback::Absent),
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, _: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let values = group.values;
        let given = |name| values.number_if_any(name);
        let (of_other, solver) = match values.text("solver") {
            Some("adam") => (
                given("ridge").or(given("rank_tolerance")),
                Solver::Adam {
                    iterations: given("iterations").unwrap_or(300.0) as usize,
                    rate: given("learning_rate").unwrap_or(1e-5),
                },
            ),
            _ => (
                given("iterations").or(given("learning_rate")),
                Solver::Closed {
                    ridge: given("ridge").unwrap_or(0.0),
                    tolerance: given("rank_tolerance").unwrap_or(1e-10),
                },
            ),
        };
        if of_other.is_some() {
            return Err(Error::MethodHasNoUse {
                method: Self::NAME,
                what: match solver {
                    Solver::Adam { .. } => "`ridge` or `rank_tolerance` with `solver: adam`",
                    Solver::Closed { .. } => {
                        "`iterations` or `learning_rate` with `solver: closed`"
                    }
                },
            });
        }
        Ok(Box::new(Least {
            solver,
            weights: values.numbers("weight"),
            lambda: values.number("lambda"),
        }))
    }
}

enum Solver {
    Closed { ridge: f64, tolerance: f64 },
    Adam { iterations: usize, rate: f64 },
}

struct Least {
    solver: Solver,
    weights: Vec<f64>,
    lambda: f64,
}

impl MatrixKernel for Least {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let share = |index: usize, norm: f64| match norm > 0.0 && self.weights[index] != 0.0 {
            true => 1.0 / norm,
            false => 0.0,
        };
        let equations = Quadratic::of(tasks, &self.weights, share)?;
        let solved = match self.solver {
            Solver::Closed { ridge, tolerance } => equations.solved(tasks, ridge, tolerance)?,
            Solver::Adam { iterations, rate } => {
                let start = tasks.sum(&self.weights)?;
                adam(start, &equations, iterations, rate)
            }
        };
        Ok(solved * self.lambda)
    }

    fn peak_elements(&self, rows: u64, columns: u64, _: u64) -> u64 {
        Quadratic::peak_elements(rows, columns) + 4 * rows * columns
    }
}

/// Steps of Adam from `start` along the gradient `2 (M C − B)`.
fn adam(start: Array2<f64>, equations: &Quadratic, iterations: usize, rate: f64) -> Array2<f64> {
    let mut merged = start;
    let (mut first, mut second) = (
        Array2::<f64>::zeros(merged.dim()),
        Array2::<f64>::zeros(merged.dim()),
    );
    let (beta1, beta2) = BETAS;
    for step in 1..=iterations {
        let gradient = (product(merged.view(), equations.gram.view()) - &equations.target) * 2.0;
        let corrections = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
        Zip::from(&mut merged)
            .and(&mut first)
            .and(&mut second)
            .and(&gradient)
            .for_each(|value, first, second, &gradient| {
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                let root = (*second / corrections.1).sqrt() + EPSILON;
                *value -= rate * (*first / corrections.0) / root;
            });
    }
    merged
}
