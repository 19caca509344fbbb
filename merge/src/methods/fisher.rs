use std::sync::Arc;

use crate::methods::parameters::{FINITE, Fallback, Kind, NOT_NEGATIVE, ParameterSpec};
use crate::methods::{
    Base, Chunk, Elementwise, GroupShape, MergeMethod, Needs, Operation, Real, Setting, Value,
};
use crate::recipe::Place;
use crate::{MergeFault, Result, StatisticsFault, TensorInfo};

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
/// A tensor that a Fisher file lacks, or has in another shape, is named. [`StatisticsFault::NegativeInformation`] for information
/// below 0. [`StatisticsFault::NoInformation`] for an element at which the shares of all models add up to 0, which a `floor`
/// above 0 prevents if no weight is negative. [`MergeFault::ForeignGrams`] for a file that `vlmerge fisher` summed over
/// another model, unless the recipe says `foreign_grams: allow`.
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
        let values = group.values;
        let weights = values.numbers("weight");
        if group.members.len() == 1 {
            return Ok(Operation::Take(0));
        }
        if weights.iter().all(|&weight| weight == 0.0) {
            return Err(MergeFault::BadValue {
                slot: group.slot.key.clone(),
                name: "weight",
                wanted: "other than 0 for one model at least".to_owned(),
                place: values.place("weight", 0),
            }
            .into());
        }
        let files = values.members.iter().map(|own| match own.get("fisher") {
            Some((Setting::Text(path), _)) => path.clone(),
            _ => String::new(),
        });
        Ok(Operation::Elementwise(Arc::new(ByInformation {
            weights,
            floor: values.number("floor"),
            from: Origin {
                slot: group.slot.key.clone(),
                info: TensorInfo {
                    dtype: group.dtype,
                    shape: group.shape.to_vec(),
                },
                members: group.labels(),
                files: files.collect(),
                floor: values.place("floor", 0),
            },
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("by Fisher information, {}", group.labels().join(" + "))
    }
}

struct ByInformation {
    weights: Vec<f64>,
    floor: f64,
    from: Origin,
}

/// Names for errors.
struct Origin {
    slot: String,
    info: TensorInfo,
    members: Vec<String>,
    files: Vec<String>,
    floor: Place,
}

impl ByInformation {
    /// The information of each model for an element.
    fn of_element<V: Value>(chunk: &Chunk<'_, V>, at: usize) -> Vec<f64> {
        let paired = chunk.paired.iter();
        paired.map(|own| own[at].real().to_f64()).collect()
    }

    fn negative(&self, member: usize, at: usize, value: f64) -> StatisticsFault {
        let name = |names: &[String]| names.get(member).cloned().unwrap_or_default();
        StatisticsFault::NegativeInformation {
            path: name(&self.from.files).into(),
            member: name(&self.from.members),
            slot: self.from.slot.clone(),
            index: self.from.info.index_of(at),
            value,
        }
    }
}

impl Elementwise for ByInformation {
    fn check<T: Real, V: Value<Real = T>>(&self, chunk: &Chunk<'_, V>) -> Result<()> {
        for (member, own) in chunk.paired.iter().enumerate() {
            if let Some(at) = own.iter().position(|value| value.real() < T::ZERO) {
                let value = own[at].real().to_f64();
                return Err(self.negative(member, chunk.first + at, value).into());
            }
        }
        // Shares that are all above 0 have a sum.
        if self.floor > 0.0 && self.weights.iter().all(|&weight| weight >= 0.0) {
            return Ok(());
        }
        let n = chunk.paired.first().map_or(0, |own| own.len());
        for at in 0..n {
            let shares = chunk.paired.iter().zip(&self.weights);
            let shares = shares.map(|(own, w)| w * (own[at].real().to_f64() + self.floor));
            if shares.sum::<f64>() == 0.0 {
                return Err(StatisticsFault::NoInformation {
                    slot: self.from.slot.clone(),
                    index: self.from.info.index_of(chunk.first + at),
                    information: Self::of_element(chunk, at),
                    floor: self.floor,
                    weights: self.weights.clone(),
                    place: self.from.floor,
                }
                .into());
            }
        }
        Ok(())
    }

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
            from: origin(),
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
    /// Two models, and a tensor of three rows of two.
    fn origin() -> Origin {
        Origin {
            slot: "x".to_owned(),
            info: TensorInfo {
                dtype: crate::DType::F64,
                shape: vec![3, 2],
            },
            members: vec!["a".to_owned(), "b".to_owned()],
            files: vec!["a.fisher".to_owned(), "b.fisher".to_owned()],
            floor: Place::default(),
        }
    }

    /// The fault of two models with this information for the elements of the second row; nothing if there is none.
    fn fault(floor: f64, weights: [f64; 2], paired: [[f64; 2]; 2]) -> String {
        let kernel = ByInformation {
            weights: weights.to_vec(),
            floor,
            from: origin(),
        };
        let chunk = Chunk {
            members: &[&[1.0, 1.0], &[5.0, 5.0]],
            base: None,
            paired: &[&paired[0], &paired[1]],
            first: 2,
        };
        let mut out = [0.0f64; 2];
        match kernel.combine_f64(&chunk, StepRounding::None, &mut out) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn information_below_zero_is_refused_with_its_file_and_place() {
        // −1.000001 + 1e-6 + 1 + 1e-6 is 1e-6, which values are divided by.
        let said = fault(1e-6, [1.0, 1.0], [[1.0, 1.0], [1.0, -1.000001]]);
        assert_eq!(
            said,
            "b.fisher: the Fisher information of b for `x` is -1.000001 at [1, 1], and a mean of squares is never below 0"
        );
        assert_eq!(fault(1e-6, [1.0, 1.0], [[1.0, -0.0], [1.0, 0.0]]), "");
    }

    #[test]
    fn an_element_of_which_no_model_knows_anything_is_refused_if_nothing_is_added() {
        let said = fault(0.0, [1.0, 1.0], [[1.0, 0.0], [0.0, 0.0]]);
        assert!(said.contains("add up to 0 at [1, 1]"), "{said}");
        assert!(said.contains("[0.0, 0.0] plus `floor` 0"), "{said}");
        assert_eq!(fault(0.0, [1.0, 1.0], [[1.0, 0.0], [0.0, 2.0]]), "");
        // 1 · (2 + 1) − 1 · (2 + 1).
        let said = fault(1.0, [1.0, -1.0], [[2.0, 3.0], [2.0, 1.0]]);
        assert!(said.contains("add up to 0 at [1, 0]"), "{said}");
    }
}
