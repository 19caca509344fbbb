use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::inner_products::Products;
use crate::methods::kernels::weighted::Weighted;
use crate::methods::parameters::{Fallback, Kind, NOT_NEGATIVE, ParameterSpec};
use crate::methods::{
    Base, ElementKernel, GroupShape, MergeMethod, Needs, Operation, Passes, Survey,
};

/// ## What it does
/// Finds the Karcher mean of the inputs' directions, the point of the sphere with the least sum of squared
/// arcs to all of them, by steps along the mean tangent; multiplies it by the mean of the norms. All elements
/// of a tensor are one vector; inputs no longer than `tol` have no direction, but count in the mean norm.
/// ## Why
/// The mean by arcs counts all models alike, in whatever order they come.
/// ## Cost
/// Two passes over each tensor, in bounded memory: the steps are taken on inner products of the inputs.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `max_iter` | 10 | whole, `≥ 1` | most steps |
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
                        range: "a whole number ≥ 1",
                        holds: |value| value >= 1.0 && value.fract() == 0.0,
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
            length if length < self.tolerance => mean = unit(first),
            length => scale(&mut mean, 1.0 / length),
        }
        for _ in 0..self.max_steps {
            let mut step = vec![0.0; n];
            for &i in &valid {
                let own = unit(i);
                let cosine = products.between(&mean, &own).clamp(-1.0, 1.0);
                let angle = cosine.acos();
                if angle >= self.tolerance {
                    let factor = share * angle / angle.sin();
                    for (k, step) in step.iter_mut().enumerate() {
                        *step += factor * (own[k] - cosine * mean[k]);
                    }
                }
            }
            let length = products.norm_of(&step);
            if length < self.tolerance {
                break;
            }
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
