use std::sync::Arc;

use crate::methods::kernels::inner_products::{CANCELED, Products};
use crate::methods::kernels::weighted::{Deltas, Weighted};
use crate::methods::parameters::{
    Fallback, Kind, NOT_NEGATIVE, ParameterSpec, WEIGHT, weighted_names,
};
use crate::methods::{
    Base, ElementKernel, GroupShape, MergeMethod, Needs, Operation, Passes, Survey,
};
use crate::{MergeFault, Result};

/// ## What it does
/// Averages directions on the sphere, and norms apart: from the weighted mean direction `m` of the unit
/// vectors `uᵢ` it goes along the mean tangent `s = Σ wᵢ (uᵢ − (uᵢ·m) m)` by its length, and multiplies by
/// `Σ wᵢ |vᵢ|`. With a base the vectors are differences from it. All elements of a tensor are one vector.
///
/// Where `|m|` is below `eps`, or below 10⁻⁷, which is rounding, there is no direction: two inputs, and any number of
/// inputs of one element, give `Σ wᵢ vᵢ`. Inputs that are all zero give it, too, where mergekit stops.
/// ## Why
/// It mixes more than two directions without shortening them.
/// ## Cost
/// Two passes over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | weight of the model |
/// | `normalize_weights` | true | yes, no | divide the weights by their sum |
/// | `eps` | 10⁻⁸ | `≥ 0` | lengths up to here count as none |
/// ## References
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::NoDirection`] when three or more inputs of several elements cancel each other;
/// [`MergeFault::WeightsSumToZero`].
#[derive(Clone, Copy, Debug)]
pub struct MultiSlerp;

impl MergeMethod for MultiSlerp {
    fn name(&self) -> &'static str {
        "multislerp"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Optional, 1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                WEIGHT,
                ParameterSpec::shared("normalize_weights", Kind::Flag, Fallback::Flag(true)),
                ParameterSpec::shared("eps", NOT_NEGATIVE, Fallback::Number(1e-8)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if group.members.len() == 1 {
            return Ok(Operation::Take(0));
        }
        let normalize = group.values.flag("normalize_weights");
        Ok(Operation::Survey(Arc::new(Sphere {
            slot: group.slot.key.clone(),
            weights: group.values.shares(&group.slot.key, normalize)?,
            eps: group.values.number("eps"),
            has_base: group.has_base,
            is_number: group.shape.iter().product::<usize>() == 1,
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let normalize = group.values.flag("normalize_weights");
        let shares = group.values.shares(&group.slot.key, normalize);
        format!(
            "on the sphere, {}",
            weighted_names(&shares.unwrap_or_default(), group.members)
        )
    }
}

struct Sphere {
    slot: String,
    weights: Vec<f64>,
    eps: f64,
    has_base: bool,
    /// Whether the tensor has one element.
    is_number: bool,
}

impl Survey for Sphere {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let products = Products::of_members(data, self.weights.len(), self.has_base)?;
        let factors = self.factors(&products)?;
        Ok(match self.has_base {
            true => Arc::new(Deltas(factors)),
            false => Arc::new(Weighted {
                base: None,
                members: factors,
            }),
        })
    }
}

impl Sphere {
    /// Every vector of the computation is a sum of the inputs; these are their factors.
    fn factors(&self, products: &Products) -> Result<Vec<f64>> {
        let n = self.weights.len();
        let norms: Vec<f64> = (0..n).map(|i| products.norm(i)).collect();
        if norms.iter().all(|&norm| norm == 0.0) {
            return Ok(self.weights.clone());
        }
        let unit: Vec<f64> = norms.iter().map(|norm| 1.0 / (norm + self.eps)).collect();
        let mean: Vec<f64> = (0..n).map(|i| self.weights[i] * unit[i]).collect();
        let length = products.norm_of(&mean);
        if length < self.eps.max(CANCELED) {
            return match n == 2 || self.is_number {
                true => Ok(self.weights.clone()),
                false => Err(MergeFault::NoDirection {
                    slot: self.slot.clone(),
                }
                .into()),
            };
        }
        let mean: Vec<f64> = mean.iter().map(|factor| factor / length).collect();
        let mut tangent = vec![0.0; n];
        for (i, &length) in unit.iter().enumerate() {
            let own: Vec<f64> = (0..n).map(|j| if i == j { length } else { 0.0 }).collect();
            let along = products.between(&own, &mean);
            for (j, tangent) in tangent.iter_mut().enumerate() {
                *tangent += self.weights[i] * (own[j] - along * mean[j]);
            }
        }
        let angle = products.norm_of(&tangent) + self.eps;
        let radius: f64 = (self.weights.iter().zip(&norms)).map(|(w, r)| w * r).sum();
        Ok((0..n)
            .map(|i| radius * (angle.cos() * mean[i] + angle.sin() / angle * tangent[i]))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sphere(weights: &[f64], is_number: bool) -> Sphere {
        Sphere {
            slot: "x".to_owned(),
            weights: weights.to_vec(),
            eps: 1e-8,
            has_base: false,
            is_number,
        }
    }

    #[test]
    fn numbers_of_opposite_signs_that_cancel_give_their_weighted_mean() {
        // mergekit in f32: |m| is 0, so the rule of two inputs holds. Through `r + eps` it is 1.07e-8 in f64.
        let products = Products::of_vectors(&[&[-2.2501411f64][..], &[0.3863696]]);
        let found = sphere(&[0.5, 0.5], true).factors(&products);
        assert_eq!(found.expect("a mean"), [0.5, 0.5]);
        // Four numbers, two of each sign: the mean of 1, 2, −3 and −4 is −1, and there is nothing to refuse.
        let products = Products::of_vectors(&[&[1.0f64][..], &[2.0], &[-3.0], &[-4.0]]);
        let found = sphere(&[0.25; 4], true).factors(&products);
        assert_eq!(found.expect("a mean"), [0.25; 4]);
    }

    #[test]
    fn vectors_that_cancel_are_mixed_if_they_are_two_and_refused_if_they_are_more() {
        let v: Vec<f64> = (1..40).map(|i| f64::from(i).sin()).collect();
        let w: Vec<f64> = v.iter().map(|x| -0.7 * x).collect();
        let products = Products::of_vectors(&[v.as_slice(), &w]);
        let found = sphere(&[0.5, 0.5], false).factors(&products);
        assert_eq!(found.expect("a mean"), [0.5, 0.5]);
        let products = Products::of_vectors(&[v.as_slice(), &w, &v, &w]);
        let found = sphere(&[0.25; 4], false).factors(&products);
        assert!(matches!(
            found,
            Err(crate::Error::Merge(fault)) if matches!(*fault, MergeFault::NoDirection { .. })
        ));
    }
}
