use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::of_element::{EachElement, OfElement, each};
use crate::methods::kernels::passes::{Look, sums};
use crate::methods::parameters::{Fallback, Kind, ParameterSpec};
use crate::methods::{
    Base, Chunk, GroupShape, Groups, Masks, MergeMethod, Needs, Operation, Real, Value,
};

/// ## What it does
/// Elects a sign for each element and keeps the largest magnitude that has it, with a mask and a factor for each
/// model (EMR-Merging). The sign is that of the mean of the task vectors `Dᵢ`, minus where that is 0; `mᵢ` says where
/// `Dᵢ` has it, and `τ` is the sign times the largest `|mᵢ Dᵢ|`. The merged file is `b + τ`; it is a model of no task
/// by itself. `vlmerge merge --masks FILE` writes the masks, one bit an element and model, and the factors. `vlmerge
/// task` makes `b + lᵢ mᵢ τ` of both files and the base.
/// ## Why
/// One vector with a mask and a factor for each task comes nearer to the models than any single model.
/// ## Cost
/// One pass over each tensor; the masks take one bit an element and model, and writing them takes one pass more.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `rescale_by` | `tensors` | `tensors`, `elements` | `lᵢ` is the mean of `abs(Dᵢ)` over that of `abs(mᵢ τ)`, of means of tensors as the published program has it, or of all elements as the paper says |
///
/// The parameter has one value for all tensors.
/// ## References
/// Huang et al. 2024, "EMR-Merging: Tuning-Free High-Performance Model Merging", <https://arxiv.org/abs/2405.17461>.
/// # Errors
/// Writing masks fails if `rescale_by` differs by the names of tensors.
#[derive(Clone, Copy, Debug)]
pub struct Emr;

const RESCALE_BY: Kind = Kind::Choice {
    names: &["tensors", "elements"],
    yes: "",
    no: "",
};

impl MergeMethod for Emr {
    fn name(&self) -> &'static str {
        "emr"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 1, usize::MAX)
    }

    fn needs_masks(&self) -> bool {
        true
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[ParameterSpec::shared(
                "rescale_by",
                RESCALE_BY,
                Fallback::Text("tensors"),
            )]
        }
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        Ok(Operation::Elementwise(Arc::new(EachElement(BySign {
            tasks: group.labels(),
            of_elements: group.values.text("rescale_by") == Some("elements"),
        }))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let labels = group.labels().join(", ");
        format!("base + the largest of {labels} with the elected sign")
    }
}

/// 1 or −1.
fn elected(deltas: &[f64]) -> f64 {
    match deltas.iter().sum::<f64>() > 0.0 {
        true => 1.0,
        false => -1.0,
    }
}

/// `τ`.
fn unified(deltas: &[f64]) -> f64 {
    let sign = elected(deltas);
    let sizes = deltas.iter().map(|delta| delta * sign);
    sign * sizes.fold(0.0, f64::max)
}

struct BySign {
    tasks: Vec<String>,
    of_elements: bool,
}

impl OfElement for BySign {
    fn change(&self, deltas: &[f64]) -> f64 {
        unified(deltas)
    }

    fn masks(&self) -> Option<&dyn Masks> {
        Some(self)
    }
}

impl Masks for BySign {
    fn tasks(&self) -> &[String] {
        &self.tasks
    }

    fn of_element(&self, deltas: &[f64], out: &mut [bool]) {
        let sign = elected(deltas);
        for (out, delta) in out.iter_mut().zip(deltas) {
            *out = delta * sign > 0.0;
        }
    }

    fn rule(&self) -> &'static str {
        match self.of_elements {
            true => "elements",
            false => "tensors",
        }
    }

    fn factors(&self, groups: &dyn Groups) -> Result<Vec<f64>> {
        let n = self.tasks.len();
        let mut totals = vec![0.0; 2 * n];
        groups.each(&mut |_, data| {
            let found = sums(data, 2 * n, &Sizes)?;
            let share = match self.of_elements {
                true => 1.0,
                false => 1.0 / data.n_elements().max(1) as f64,
            };
            for (total, sum) in totals.iter_mut().zip(found) {
                *total += sum * share;
            }
            Ok(())
        })?;
        let (own, kept) = totals.split_at(n);
        // A model that is the base has nothing to scale.
        let factor = |(own, kept): (&f64, &f64)| if *kept > 0.0 { own / kept } else { 1.0 };
        Ok(own.iter().zip(kept).map(factor).collect())
    }
}

/// Sums of `|Dᵢ|` of each model, then of `|mᵢ τ|`.
struct Sizes;

impl Look for Sizes {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        let n = chunk.members.len();
        let mut sums = vec![0.0; 2 * n];
        each(chunk, |_, _, deltas| {
            let tau = unified(deltas);
            for (index, delta) in deltas.iter().enumerate() {
                sums[index] += delta.abs();
                if delta * tau > 0.0 {
                    sums[n + index] += tau.abs();
                }
            }
        });
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_elected_sign_stands_for_all() {
        assert_eq!(unified(&[1.0, 3.0, -2.0]), 3.0);
        assert_eq!(unified(&[1.0, 0.5, -2.0]), -2.0);
        // A sum of zero counts as minus.
        assert_eq!(unified(&[2.0, -2.0]), -2.0);
        assert_eq!(unified(&[0.0, 0.0]), 0.0);
        let mut mask = [false; 3];
        let by_sign = BySign {
            tasks: Vec::new(),
            of_elements: false,
        };
        by_sign.of_element(&[1.0, 3.0, -2.0], &mut mask);
        assert_eq!(mask, [true, true, false]);
    }
}
