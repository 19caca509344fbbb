use std::sync::Arc;

use crate::Result;
use crate::methods::consensus::TALL_LAMBDA;
use crate::methods::kernels::of_element::{EachElement, OfElement};
use crate::methods::parameters::ParameterSpec;
use crate::methods::{Base, GroupShape, Groups, Masks, MergeMethod, Needs, Operation};

/// ## What it does
/// Sums the task vectors, and keeps for each model a mask of the elements that matter to it (TALL masks). The merged
/// file is `b + τ`, `τ = Σ Dᵢ`; it is a model of no task by itself. `vlmerge merge --masks FILE` writes the masks,
/// one bit an element and model: an element is of model i where `|Dᵢ| > tall_lambda |τ − Dᵢ|`. `vlmerge task` makes
/// `b + mᵢ τ` of both files and the base.
/// ## Why
/// A sum of task vectors still holds each of them; only the mask of a task is lost.
/// ## Cost
/// One pass over each tensor; the masks take one bit an element and model.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `tall_lambda` | 0.4, per model | `≥ 0` | how much larger the rest of the sum may be; the paper chooses from 0.2 to 0.6 for each model |
/// ## References
/// Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression",
/// <https://arxiv.org/abs/2405.07813>.
/// # Errors
/// Those of all methods.
#[derive(Clone, Copy, Debug)]
pub struct TallMasks;

/// Whether an element of the summed task vector is of the task with this difference from the base.
pub(super) fn is_of_task(delta: f64, sum: f64, share: f64) -> bool {
    delta.abs() > share * (sum - delta).abs()
}

impl MergeMethod for TallMasks {
    fn name(&self) -> &'static str {
        "tall_masks"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 1, usize::MAX)
    }

    fn needs_masks(&self) -> bool {
        true
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[TALL_LAMBDA] }
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        Ok(Operation::Elementwise(Arc::new(EachElement(OfShares {
            tasks: group.labels(),
            shares: group.values.numbers("tall_lambda"),
        }))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("base + the sum of {}", group.labels().join(", "))
    }
}

struct OfShares {
    tasks: Vec<String>,
    shares: Vec<f64>,
}

impl OfElement for OfShares {
    fn change(&self, deltas: &[f64]) -> f64 {
        deltas.iter().sum()
    }

    fn masks(&self) -> Option<&dyn Masks> {
        Some(self)
    }
}

impl Masks for OfShares {
    fn tasks(&self) -> &[String] {
        &self.tasks
    }

    fn of_element(&self, deltas: &[f64], out: &mut [bool]) {
        let sum: f64 = deltas.iter().sum();
        for ((out, &delta), &share) in out.iter_mut().zip(deltas).zip(&self.shares) {
            *out = is_of_task(delta, sum, share);
        }
    }

    fn factors(&self, _: &dyn Groups) -> Result<Vec<f64>> {
        Ok(vec![1.0; self.shares.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_of_the_tasks_that_make_most_of_it() {
        // τ = 5: |4| > ½ |1|, |1| < ½ |4|; a lone model owns all that it changes.
        assert!(is_of_task(4.0, 5.0, 0.5) && !is_of_task(1.0, 5.0, 0.5));
        assert!(is_of_task(4.0, 4.0, 0.5) && !is_of_task(0.0, 0.0, 0.5));
        // Strictly more.
        assert!(!is_of_task(1.0, 2.0, 1.0));
    }
}
