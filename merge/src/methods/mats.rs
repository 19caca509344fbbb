use std::sync::Arc;

use ndarray::{Array2, ArrayD, Zip};

use crate::linear_algebra::{LinearAlgebra, default_algebra};
use crate::methods::linear_layers::{matrix, mean, shrink};
use crate::methods::parameters::{Fallback, Kind, NOT_NEGATIVE, ParameterSpec, SHARE, WHOLE};
use crate::methods::{
    Base, GroupData, GroupShape, Member, MergeMethod, Needs, Operation, WholeKernel,
};
use crate::recipe::Parameters;
use crate::{Error, Result, Slot};

/// ## What it does
/// Takes steps of the conjugate gradient method towards the linear layer of `regmean`: `W Σ G̃ᵢ = Σ Wᵢ G̃ᵢ`, where `Gᵢ` is the
/// gram matrix of the layer's inputs and `G̃ = γ G + (1 − γ) diag(G)`. The steps begin at the base, which may be another merge,
/// or without one at the plain mean. A few steps go far along the directions that inputs have most of and leave the others
/// as they were at the beginning, so that no matrix is too near to singular. Other tensors take the plain mean, and so do
/// linear weights whose inputs the family does not record.
///
/// To begin at the result of another method, make that a document of the recipe and name it as `base_model`.
/// ## Why
/// `regmean` needs matrices that are far from singular. A few steps from a good start need none.
/// ## Cost
/// Gram matrices of each model, and up to `iterations` products of a weight with a matrix of its inputs, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `grams` | required, per model | file | gram matrices, as for `regmean` |
/// | `shrink` | 1 | `[0, 1]` | γ, the factor on the off-diagonal |
/// | `iterations` | 100 | whole numbers | most steps for each weight |
/// | `tolerance` | 1e-5 | `≥ 0` | a weight takes no more steps when `\|Σ Wᵢ G̃ᵢ − W Σ G̃ᵢ\|` is up to this share of `\|Σ Wᵢ G̃ᵢ\|` |
/// ## References
/// Tam et al. 2023, "Merging by Matching Models in Task Parameter Subspaces", <https://arxiv.org/abs/2312.04339>, MaTS with
/// RegMean's objective, by its program, <https://github.com/r-three/mats>; the objective with diagonal Fisher information has
/// a closed form, which is `fisher`.
/// # Errors
/// [`Error::MissingGram`] naming the weight, unless the recipe says `on_missing_gram: mean`;
/// [`crate::MergeFault::ForeignGrams`] for grams of another file, unless it says `foreign_grams: allow`.
#[derive(Clone, Copy, Debug)]
pub struct Mats {
    /// γ, the factor on the off-diagonal.
    pub shrink: f64,
    /// Most steps for each weight.
    pub iterations: usize,
    /// The share of the right side that the residual may be in the end.
    pub tolerance: f64,
}

impl Mats {
    /// Reads all but `grams`, which the plan opens.
    ///
    /// # Errors
    /// When a parameter is unknown or out of range.
    pub fn from_parameters(parameters: &Parameters) -> Result<Self> {
        let names = ["grams", "shrink", "iterations", "tolerance"];
        parameters.allow_only("mats", &names)?;
        let is_share = |shrink| (0.0..=1.0).contains(&shrink);
        let is_count = |count: f64| count.fract() == 0.0 && (0.0..=1e6).contains(&count);
        let iterations = "a whole number from 0 to 1,000,000";
        Ok(Self {
            shrink: parameters.number("shrink", 1.0, "a number from 0 to 1", is_share)?,
            iterations: parameters.number("iterations", 100.0, iterations, is_count)? as usize,
            tolerance: parameters
                .number("tolerance", 1e-5, "a number ≥ 0", |share| share >= 0.0)?,
        })
    }
}

impl MergeMethod for Mats {
    fn name(&self) -> &'static str {
        "mats"
    }

    fn needs(&self) -> Needs {
        Needs {
            grams: true,
            ..Needs::inputs(Base::Optional, 1, usize::MAX)
        }
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec::per_member("grams", Kind::File, Fallback::Required),
                ParameterSpec::shared("shrink", SHARE, Fallback::Number(1.0)),
                ParameterSpec::shared("iterations", WHOLE, Fallback::Number(100.0)),
                ParameterSpec::shared("tolerance", NOT_NEGATIVE, Fallback::Number(1e-5)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let n = group.members.len();
        // The plan has asked for the matrices of every weight that should have some.
        if group.grams.is_empty() {
            return Ok(mean(n));
        }
        if group.grams.iter().flatten().count() < n {
            return Err(NO_GRAM);
        }
        if n == 1 && !group.has_base {
            return Ok(Operation::Take(0));
        }
        Ok(Operation::Whole(Arc::new(Steps {
            method: *self,
            slot: group.slot.clone(),
            members: group.members.to_vec(),
            has_base: group.has_base,
            algebra: default_algebra(),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let names = group.labels();
        let start = match group.has_base {
            true => "the base",
            false => "the mean",
        };
        match group.grams.is_empty() {
            _ if names.len() == 1 && !group.has_base => names.concat(),
            false => format!(
                "conjugate gradient from {start} to the least squares of {}",
                names.join(", ")
            ),
            true => format!("mean of {}", names.join(", ")),
        }
    }
}

/// The checks of a plan before it asks for an operation, unless the recipe says `as_published`, which leaves
/// members out.
const NO_GRAM: Error = Error::MethodNeeds {
    method: "mats",
    what: "a gram matrix for each member of a linear weight",
};

/// The steps of one linear weight.
struct Steps {
    method: Mats,
    slot: Slot,
    members: Vec<Member>,
    has_base: bool,
    algebra: Arc<dyn LinearAlgebra>,
}

impl WholeKernel for Steps {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let mut equations: Option<Equations> = None;
        let mut sum: Option<Array2<f64>> = None;
        for member in 0..self.members.len() {
            let mut gram = group.gram(member)?;
            shrink(&mut gram, self.method.shrink);
            let whose = (&self.slot, &self.members[member]);
            let weight = matrix(group.member(member)?, whose, &gram)?;
            let target = self.algebra.multiply(&weight, &gram);
            equations = Some(match equations {
                None => Equations { gram, target },
                Some(all) => Equations {
                    gram: all.gram + &gram,
                    target: all.target + &target,
                },
            });
            sum = Some(match sum {
                None => weight,
                Some(sum) => sum + &weight,
            });
        }
        // `operation` never builds this without a member.
        let (Some(equations), Some(sum)) = (equations, sum) else {
            return group.member(0);
        };
        let start = match self.has_base {
            true => matrix(
                group.base()?,
                (&self.slot, &self.members[0]),
                &equations.gram,
            )?,
            false => sum / self.members.len() as f64,
        };
        let Mats {
            iterations,
            tolerance,
            ..
        } = self.method;
        let solved = equations.approached(start, iterations, tolerance, self.algebra.as_ref());
        Ok(solved.into_dyn())
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        let (out, width) = match *shape {
            [out, width] => (out as u64, width as u64),
            _ => (0, 0),
        };
        // Target, solution, residual, direction and its product, and a term; two grams, and a third while a packed one is
        // spread out.
        (out * width * 6 + width * width * 3) * 8
    }
}

/// `X · gram = target`.
struct Equations {
    /// Symmetric, `(in, in)`.
    gram: Array2<f64>,
    /// `(out, in)`.
    target: Array2<f64>,
}

impl Equations {
    /// Takes up to `iterations` steps of the conjugate gradient method from `start` (Hestenes and Stiefel 1952, "Methods of
    /// Conjugate Gradients for Solving Linear Systems"). As published, all rows of `X` are one vector. The steps end when the
    /// residual is at most `tolerance` of the target.
    fn approached(
        &self,
        start: Array2<f64>,
        iterations: usize,
        tolerance: f64,
        algebra: &dyn LinearAlgebra,
    ) -> Array2<f64> {
        let mut solution = start;
        let mut residual = &self.target - &algebra.multiply(&solution, &self.gram);
        let mut direction = residual.clone();
        let mut squares = inner(&residual, &residual);
        let least = tolerance * tolerance * inner(&self.target, &self.target);
        for _ in 0..iterations {
            if squares <= least {
                break;
            }
            let product = algebra.multiply(&direction, &self.gram);
            let curvature = inner(&direction, &product);
            // A direction that no input has leads nowhere.
            if curvature <= 0.0 {
                break;
            }
            let step = squares / curvature;
            solution.scaled_add(step, &direction);
            residual.scaled_add(-step, &product);
            let before = squares;
            squares = inner(&residual, &residual);
            let kept = squares / before;
            Zip::from(&mut direction)
                .and(&residual)
                .for_each(|direction, &residual| *direction = residual + kept * *direction);
        }
        solution
    }
}

/// Sum of the products of elements.
fn inner(one: &Array2<f64>, other: &Array2<f64>) -> f64 {
    Zip::from(one)
        .and(other)
        .fold(0.0, |sum, one, other| sum + one * other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    fn drawn(name: &str, rows: usize, columns: usize) -> Array2<f64> {
        let mut values = vec![0.0; rows * columns];
        Draws::new(8, name).add_normal(1.0, 0, &mut values);
        let values = values.into_iter().map(f64::from).collect();
        Array2::from_shape_vec((rows, columns), values).expect("as many")
    }

    /// The first iterate of a Krylov space by its definition: of all `start + Σ cₖ R Gᵏ` with k below n that of the least
    /// `½ ⟨X, X G⟩ − ⟨X, B⟩`, by normal equations that elimination solves.
    fn of_krylov_space(equations: &Equations, start: &Array2<f64>, n: usize) -> Array2<f64> {
        let residual = &equations.target - &start.dot(&equations.gram);
        let mut powers = vec![residual.clone()];
        for _ in 1..n {
            let next = powers[powers.len() - 1].dot(&equations.gram);
            let length = inner(&next, &next).sqrt();
            powers.push(next / length);
        }
        let mut system: Vec<Vec<f64>> = (0..n)
            .map(|row| {
                let image = powers[row].dot(&equations.gram);
                let mut values: Vec<f64> =
                    powers.iter().map(|power| inner(power, &image)).collect();
                values.push(inner(&powers[row], &residual));
                values
            })
            .collect();
        for pivot in 0..n {
            let by = system[pivot].clone();
            let others = system
                .iter_mut()
                .enumerate()
                .filter(|(row, _)| *row != pivot);
            for (_, row) in others {
                let factor = row[pivot] / by[pivot];
                let numbers = row.iter_mut().zip(&by);
                numbers.for_each(|(number, by)| *number -= factor * by);
            }
        }
        let mut found = start.clone();
        for (row, power) in powers.iter().enumerate() {
            found.scaled_add(system[row][n] / system[row][row], power);
        }
        found
    }

    fn largest(matrix: &Array2<f64>) -> f64 {
        matrix.iter().fold(0.0, |most, value| most.max(value.abs()))
    }

    fn equations() -> (Equations, Array2<f64>) {
        let inputs = drawn("inputs", 20, 5);
        let gram = inputs.t().dot(&inputs);
        let weight = drawn("weight", 3, 5);
        let target = weight.dot(&gram);
        (Equations { gram, target }, weight)
    }

    #[test]
    fn n_steps_are_the_best_of_the_krylov_space_of_n_powers() {
        let (equations, _) = equations();
        let start = drawn("start", 3, 5);
        for n in 1..=4 {
            let found = equations.approached(start.clone(), n, 0.0, default_algebra().as_ref());
            let expected = of_krylov_space(&equations, &start, n);
            assert!(largest(&(&found - &expected)) < 1e-8, "{n}");
        }
        let none = equations.approached(start.clone(), 0, 0.0, default_algebra().as_ref());
        assert_eq!(none, start);
    }

    #[test]
    fn as_many_steps_as_inputs_end_at_the_solution_and_a_tolerance_ends_earlier() {
        let (equations, weight) = equations();
        let start = drawn("start", 3, 5);
        let algebra = default_algebra();
        let found = equations.approached(start.clone(), 5, 0.0, algebra.as_ref());
        assert!(largest(&(&found - &weight)) < 1e-9);
        let early = equations.approached(start.clone(), 50, 0.1, algebra.as_ref());
        let residual = &equations.target - &early.dot(&equations.gram);
        let share =
            (inner(&residual, &residual) / inner(&equations.target, &equations.target)).sqrt();
        assert!(
            share <= 0.1 && largest(&(&early - &weight)) > 1e-6,
            "{share}"
        );
    }

    #[test]
    fn what_no_input_has_stays_as_it_was_at_the_start() {
        let (mut equations, weight) = equations();
        for index in 0..5 {
            equations.gram[(4, index)] = 0.0;
            equations.gram[(index, 4)] = 0.0;
        }
        equations.target = weight.dot(&equations.gram);
        let start = drawn("start", 3, 5);
        let found = equations.approached(start.clone(), 100, 0.0, default_algebra().as_ref());
        for row in 0..3 {
            assert_eq!(found[(row, 4)], start[(row, 4)]);
            for column in 0..4 {
                assert!((found[(row, column)] - weight[(row, column)]).abs() < 1e-9);
            }
        }
    }
}
