use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::inner_products::{CANCELED, Products};
use crate::methods::kernels::weighted::Weighted;
use crate::methods::parameters::{Fallback, Kind, NOT_NEGATIVE, ParameterSpec};
use crate::methods::{
    Base, ElementKernel, GroupShape, MergeMethod, Needs, Operation, Passes, Survey,
};

/// ## What it does
/// Finds the Karcher mean of the inputs' directions, the point of the sphere with the least sum of squared
/// arcs to all of them, by steps along the mean tangent; multiplies it by the mean of the norms. All elements
/// of a tensor are one vector; inputs no longer than `tol` have no direction, but count in the mean norm. An
/// input that points straight away from the mean has no tangent, and takes no part in the step.
/// ## Why
/// The mean by arcs counts all models alike, in whatever order they come.
/// ## Cost
/// Two passes over each tensor, in bounded memory: the steps are taken on inner products of the inputs.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `max_iter` | 10 | whole, 1 to 1,000,000 | most steps; fewer, if they no longer shrink |
/// | `tol` | 10⁻⁵ | `≥ 0` | lengths and steps up to here count as none |
/// ## References
/// Karcher 1977, "Riemannian center of mass and mollifier smoothing",
/// <https://doi.org/10.1002/cpa.3160300502>; mergekit 0.1.5.
/// # Errors
/// Numbers out of range are refused with the recipe's line.
#[derive(Clone, Copy, Debug)]
pub struct Karcher;

impl MergeMethod for Karcher {
    fn name(&self) -> &'static str {
        "karcher"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::None, 1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec::shared(
                    "max_iter",
                    Kind::Number {
                        range: "a whole number from 1 to 1,000,000",
                        holds: |value| (1.0..=1e6).contains(&value) && value.fract() == 0.0,
                    },
                    Fallback::Number(10.0),
                ),
                ParameterSpec::shared("tol", NOT_NEGATIVE, Fallback::Number(1e-5)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        Ok(match group.members.len() {
            1 => Operation::Take(0),
            n_members => Operation::Survey(Arc::new(Center {
                n_members,
                max_steps: group.values.number("max_iter") as usize,
                tolerance: group.values.number("tol"),
            })),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("Karcher mean of {}", group.labels().join(", "))
    }
}

/// Up to here the square of the sine between an input and the direction away from the mean is rounding.
const STRAIGHT_AWAY: f64 = 1e-14;

struct Center {
    n_members: usize,
    max_steps: usize,
    tolerance: f64,
}

impl Survey for Center {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let products = Products::of_members(data, self.n_members, false)?;
        Ok(Arc::new(Weighted {
            base: None,
            members: self.factors(&products),
        }))
    }
}

impl Center {
    /// Every vector of the iteration is a sum of the inputs; these are the factors of the last.
    fn factors(&self, products: &Products) -> Vec<f64> {
        let n = self.n_members;
        let norms: Vec<f64> = (0..n).map(|i| products.norm(i)).collect();
        let valid: Vec<usize> = (0..n).filter(|&i| norms[i] > self.tolerance).collect();
        let Some(&first) = valid.first() else {
            return vec![0.0; n];
        };
        let unit = |i: usize| {
            let mut factors = vec![0.0; n];
            factors[i] = 1.0 / norms[i];
            factors
        };
        let share = 1.0 / valid.len() as f64;
        let mut mean = vec![0.0; n];
        valid.iter().for_each(|&i| mean[i] = share / norms[i]);
        match products.norm_of(&mean) {
            length if length < self.tolerance.max(CANCELED) => mean = unit(first),
            length => scale(&mut mean, 1.0 / length),
        }
        let mut previous = f64::INFINITY;
        for _ in 0..self.max_steps {
            let mut step = vec![0.0; n];
            for &i in &valid {
                let own = unit(i);
                let cosine = products.between(&mean, &own).clamp(-1.0, 1.0);
                if cosine < 0.0 && 1.0 - cosine * cosine < STRAIGHT_AWAY {
                    // Every way there is as short: `own − cosine·mean` is 0, except for rounding.
                    continue;
                }
                let angle = cosine.acos();
                if angle >= self.tolerance && angle > 0.0 {
                    let factor = share * angle / angle.sin();
                    for (k, step) in step.iter_mut().enumerate() {
                        *step += factor * (own[k] - cosine * mean[k]);
                    }
                }
            }
            let length = products.norm_of(&step);
            let is_rounding = length < CANCELED && length >= previous;
            if length < self.tolerance || length == 0.0 || is_rounding {
                break;
            }
            previous = length;
            let (cosine, sine) = (length.cos(), length.sin() / length);
            for (mean, step) in mean.iter_mut().zip(&step) {
                *mean = cosine * *mean + sine * step;
            }
            let length = products.norm_of(&mean);
            if length > self.tolerance {
                scale(&mut mean, 1.0 / length);
            }
        }
        let radius = norms.iter().sum::<f64>() / n as f64;
        scale(&mut mean, radius);
        mean
    }
}

fn scale(vector: &mut [f64], factor: f64) {
    vector.iter_mut().for_each(|value| *value *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of the vectors `cᵢ v`.
    fn mean(factors: &[f64], v: &[f64], tolerance: f64, max_steps: usize) -> Vec<f64> {
        let scaled = |factor: &f64| -> Vec<f64> { v.iter().map(|x| factor * x).collect() };
        let inputs: Vec<Vec<f64>> = factors.iter().map(scaled).collect();
        let center = Center {
            n_members: inputs.len(),
            max_steps,
            tolerance,
        };
        let views: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
        let found = center.factors(&Products::of_vectors(&views));
        let sum = |k: usize| {
            found
                .iter()
                .zip(&inputs)
                .map(|(f, input)| f * input[k])
                .sum()
        };
        (0..v.len()).map(sum).collect()
    }

    #[test]
    fn inputs_along_one_line_give_the_side_of_most_and_the_mean_norm() {
        // All u − c·m are 0, so m stays ± v / |v|: (1.3 + 0.7 + 2.1) / 3 v, (1 + 1 + 1) / 3 v, and so on. Where the signs
        // cancel, the first input says the side: (0.3 + 0.2) / 2 v.
        let cases: [(&[f64], f64); 5] = [
            (&[1.3, -0.7, 2.1], 4.1 / 3.0),
            (&[1.0, -1.0, 1.0], 1.0),
            (&[0.3, -0.2, -0.5], -1.0 / 3.0),
            (&[0.3, -0.2], 0.25),
            (&[-2.0, 4.0], -3.0),
        ];
        for v in [&[1.0][..], &[1.0, 2.0, 3.0], &[0.1, -0.7, 0.3, 1e-3]] {
            for (factors, wanted) in cases {
                for (tolerance, max_steps) in [(1e-5, 10), (0.0, 1_000_000)] {
                    let found = mean(factors, v, tolerance, max_steps);
                    for (found, v) in found.iter().zip(v) {
                        let apart = (found - wanted * v).abs();
                        assert!(apart < 1e-7, "{factors:?} of {v}: {found}, tol {tolerance}");
                    }
                }
            }
        }
    }

    #[test]
    fn steps_end_where_they_no_longer_shrink() {
        // Perpendicular unit vectors: the mean is halfway between them. Without another end the steps would go on for ever.
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let vectors: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
        let center = Center {
            n_members: 2,
            max_steps: usize::MAX,
            tolerance: 0.0,
        };
        let found = center.factors(&Products::of_vectors(&vectors));
        assert!(found.iter().all(|factor| (factor - half).abs() < 1e-7));
        let vectors: [&[f64]; 3] = [&[1.0, 0.2, 0.0], &[0.1, 1.0, 0.3], &[0.5, 0.1, 2.0]];
        let center = Center {
            n_members: 3,
            ..center
        };
        let found = center.factors(&Products::of_vectors(&vectors));
        assert!(found.iter().all(|factor| factor.is_finite()));
    }
}
