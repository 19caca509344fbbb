use crate::Result;
use crate::methods::GroupShape;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT};
use crate::methods::thinning::consensus::{DENSITY, INT8_MASK, LAMBDA, RESCALE, ThinningMethod};
use crate::methods::thinning::sparsifier::Sparsifier;

/// ## What it does
/// Adds the weighted task vectors to the base: `W = b + λ Σ wᵢ (xᵢ − b)`, with `normalize` divided by
/// `Σ wᵢ`.
/// ## Why
/// A task vector holds the result of fine-tuning. The sum of several gives one model several abilities.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `normalize` | false | yes, no | divide by the weights of all models |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `density`, `rescale`, `int8_mask` | - | - | taken for mergekit's recipes; change nothing |
/// ## References
/// Ilharco et al. 2023, "Editing Models with Task Arithmetic", <https://arxiv.org/abs/2212.04089>.
/// # Errors
/// [`MergeFault::WeightsSumToZero`](crate::MergeFault::WeightsSumToZero) when weights are to be divided by a sum of 0.
#[derive(Clone, Copy, Debug)]
pub struct TaskArithmetic;

impl ThinningMethod for TaskArithmetic {
    const NAME: &str = "task_arithmetic";
    const BY_SIGN: bool = false;
    const PARAMETERS: &[ParameterSpec] = &[
        WEIGHT,
        DENSITY,
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(false)),
        ParameterSpec::shared("rescale", RESCALE, Fallback::Text("none")),
        LAMBDA,
        INT8_MASK,
    ];

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        Ok(vec![Sparsifier::None; group.members.len()])
    }
}
