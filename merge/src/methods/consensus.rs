use std::sync::Arc;

use crate::methods::kernels::of_element::EachElement;
use crate::methods::parameters::{Fallback, NOT_NEGATIVE, ParameterSpec, WHOLE};
use crate::methods::tall_masks::is_of_task;
use crate::methods::thinning::consensus::LAMBDA;
use crate::methods::{Base, GroupShape, MergeMethod, Needs, Operation};
use crate::{MergeFault, Result};

/// ## What it does
/// Keeps those elements of the summed task vector that matter to several models (Consensus task arithmetic). With `τ
/// = Σ Dᵢ`, an element matters to model i where `|Dᵢ| > tall_lambda |τ − Dᵢ|`. `W = b + λ τ` where it matters to at
/// least `min_models` models, and the base elsewhere.
/// ## Why
/// An element that helps one task alone disturbs the others.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `tall_lambda` | 0.4, per model | `≥ 0` | how much larger the rest of the sum may be; the paper chooses from 0.2 to 0.6 for each model |
/// | `min_models` | 2 | whole numbers up to that of the models | 0 keeps all, as `task_arithmetic` |
/// | `lambda` | 1 | any number | factor on the sum; the paper tunes it as for task arithmetic |
/// ## References
/// Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression",
/// <https://arxiv.org/abs/2405.07813>, Consensus TA.
/// # Errors
/// [`MergeFault::BadValue`] for more `min_models` than there are models.
#[derive(Clone, Copy, Debug)]
pub struct Consensus;

/// `tall_lambda` as both methods take it.
pub(super) const TALL_LAMBDA: ParameterSpec =
    ParameterSpec::per_member("tall_lambda", NOT_NEGATIVE, Fallback::Number(0.4));

impl MergeMethod for Consensus {
    fn name(&self) -> &'static str {
        "consensus"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 2, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                TALL_LAMBDA,
                ParameterSpec::shared("min_models", WHOLE, Fallback::Number(2.0)),
                LAMBDA,
            ]
        }
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let values = group.values;
        let (n, least) = (group.members.len(), values.number("min_models"));
        if least > n as f64 {
            return Err(MergeFault::BadValue {
                slot: group.slot.key.clone(),
                name: "min_models",
                wanted: format!("at most {n}, the number of models: nothing would be left of them"),
                place: values.place("min_models", 0),
            }
            .into());
        }
        let (shares, lambda) = (values.numbers("tall_lambda"), values.number("lambda"));
        let change = move |deltas: &[f64]| {
            let sum: f64 = deltas.iter().sum();
            let of_tasks = deltas.iter().zip(&shares);
            let n = of_tasks.filter(|(delta, share)| is_of_task(**delta, sum, **share));
            match n.count() as f64 >= least {
                true => lambda * sum,
                false => 0.0,
            }
        };
        Ok(Operation::Elementwise(Arc::new(EachElement(change))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let least = group.values.number("min_models");
        let labels = group.labels().join(", ");
        format!("base + the sum of {labels} where it matters to {least}")
    }
}
