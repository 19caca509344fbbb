use std::sync::Arc;

use crate::Result;
use crate::methods::parameters::{FINITE, Fallback, Kind, NOT_NEGATIVE, ParameterSpec};
use crate::methods::{
    Base, Chunk, Elementwise, GroupShape, MergeMethod, Needs, Operation, Real, Value,
};

/// ## What it does
/// Averages each element by how sure each model is of it: `W = Σ wᵢ (Fᵢ + floor) xᵢ / Σ wᵢ (Fᵢ + floor)`,
/// where `Fᵢ` is the diagonal of model i's Fisher information, the mean square of the gradient. `vlmerge fisher` sums it.
/// For the experts of one checkpoint, one file over the checkpoint holds the information of each expert.
/// ## Why
/// A model should decide an element if its own loss depends on it.
/// ## Cost
/// A file of each model's size from `vlmerge fisher`, which computes gradients over data; then one pass over each
/// tensor.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `fisher` | required, per model | file | tensors of the model's names and shapes that hold the diagonal |
/// | `weight` | 1, per model | any number | weight of the model |
/// | `floor` | 10⁻⁶ | `≥ 0` | added to the information, so that elements of which no model is sure are the plain mean |
/// ## References
/// Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging",
/// <https://arxiv.org/abs/2111.09832>.
/// # Errors
/// A tensor that a Fisher file lacks, or has in another shape, is named; [`crate::MergeFault::ForeignGrams`] for a file that
/// `vlmerge fisher` summed over another model, unless the recipe says `foreign_grams: allow`.
#[derive(Clone, Copy, Debug)]
pub struct Fisher;

impl MergeMethod for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn needs(&self) -> Needs {
        Needs {
            paired: Some("fisher"),
            ..Needs::inputs(Base::None, 1, usize::MAX)
        }
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec::per_member("fisher", Kind::File, Fallback::Required),
                ParameterSpec::per_member("weight", FINITE, Fallback::Number(1.0)),
                ParameterSpec::shared("floor", NOT_NEGATIVE, Fallback::Number(1e-6)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        Ok(match group.members.len() {
            1 => Operation::Take(0),
            _ => Operation::Elementwise(Arc::new(ByInformation {
                weights: group.values.numbers("weight"),
                floor: group.values.number("floor"),
            })),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("by Fisher information, {}", group.labels().join(" + "))
    }
}

struct ByInformation {
    weights: Vec<f64>,
    floor: f64,
}

impl Elementwise for ByInformation {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        for (index, out) in out.iter_mut().enumerate() {
            // In f64: information spans many powers of ten, and its squares are tiny in f32.
            let (mut sum, mut total) = (0.0, 0.0);
            let inputs = chunk.members.iter().zip(chunk.paired).zip(&self.weights);
            for ((member, information), weight) in inputs {
                let share = weight * (information[index].real().to_f64() + self.floor);
                sum += share * member[index].real().to_f64();
                total += share;
            }
            *out = T::from_f64(sum / total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{ElementKernel, StepRounding};

    #[test]
    fn who_is_surer_counts_for_more_and_nobody_sure_is_the_mean() {
        let kernel = ByInformation {
            weights: vec![1.0, 1.0],
            floor: 1e-6,
        };
        let chunk = Chunk {
            members: &[&[1.0, 1.0], &[5.0, 5.0]],
            base: None,
            paired: &[&[3e-6 - 1e-6, 0.0], &[0.0, 0.0]],
            first: 0,
        };
        let mut out = [0.0f64; 2];
        kernel
            .combine_f64(&chunk, StepRounding::None, &mut out)
            .expect("it cannot fail");
        // (3 · 1 + 1 · 5) / 4, and (1 + 5) / 2.
        assert!(
            (out[0] - 2.0).abs() < 1e-12 && (out[1] - 3.0).abs() < 1e-12,
            "{out:?}"
        );
    }
}
