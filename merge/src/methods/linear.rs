use std::sync::Arc;

use crate::Result;
use crate::methods::interpolate::Shares;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT, weighted_names};
use crate::methods::{Base, GroupShape, MergeMethod, Needs, Operation};

/// ## What it does
/// Averages by weight: `W = Σ wᵢ xᵢ / Σ wᵢ`, without the division if `normalize` is off.
/// ## Why
/// Fine-tuned copies of one model often lie in one region of low loss, and so does their mean.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model |
/// | `normalize` | true | yes, no | divide by the sum of the weights |
/// ## References
/// Wortsman et al. 2022, "Model soups", <https://arxiv.org/abs/2203.05482>.
/// # Errors
/// [`MergeFault::WeightsSumToZero`](crate::MergeFault::WeightsSumToZero), where mergekit writes infinities.
#[derive(Clone, Copy, Debug)]
pub struct Linear;

impl MergeMethod for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::None, 1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                WEIGHT,
                ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(true)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let normalize = group.values.flag("normalize");
        let shares = group.values.shares(&group.slot.key, normalize)?;
        Ok(match shares.as_slice() {
            [1.0] => Operation::Take(0),
            _ => Operation::Elementwise(Arc::new(Shares(shares))),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let normalize = group.values.flag("normalize");
        let shares = group.values.shares(&group.slot.key, normalize);
        weighted_names(&shares.unwrap_or_default(), group.members)
    }
}
