use crate::Result;
use crate::methods::GroupShape;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT};
use crate::methods::thinning::consensus::{
    DENSITY, INT8_MASK, LAMBDA, RESCALE, ThinningMethod, by_density,
};
use crate::methods::thinning::sparsifier::{Sparsifier, chance};

/// ## What it does
/// Drops elements of each task vector by chance, rescales the rest, and adds it, weighted, to the
/// base: `W = b + λ Σ wᵢ d̃ᵢ`.
///
/// Masks are drawn by seed, tensor, model and element (recipe keys `seed` and `rng`), so that they do
/// not depend on what else is merged; `rng: mergekit` gives mergekit's masks bit for bit.
/// ## Why
/// Most elements of a task vector can go if the rest is rescaled, and sparse task vectors meet less often.
/// ## Cost
/// Up to two passes over each tensor: one draws the masks and sums up the remaining elements, one writes. A mask takes
/// one bit an element.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `normalize` | false | yes, no | divide by the weights of all models |
/// | `rescale` | true | `true` or `l1`, `inverse`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after; `inverse` divides each element by its chance to stay |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Yu et al. 2024, "Language Models are Super Mario", <https://arxiv.org/abs/2311.03099>; its factor
/// 1/density is `rescale: inverse`.
/// # Errors
/// A density outside [0, 1] is refused with the recipe's line.
/// [`MergeFault::WeightsSumToZero`](crate::MergeFault::WeightsSumToZero) when weights are to be divided by a sum of 0.
#[derive(Clone, Copy, Debug)]
pub struct DareLinear;

impl ThinningMethod for DareLinear {
    const NAME: &str = "dare_linear";
    const BY_SIGN: bool = false;
    const BY_CHANCE: bool = true;
    const PARAMETERS: &[ParameterSpec] = &[
        WEIGHT,
        DENSITY,
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(false)),
        ParameterSpec::shared("rescale", RESCALE, Fallback::Text("l1")),
        LAMBDA,
        INT8_MASK,
    ];

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        by_density(group, |_, density| Ok(chance(group, density)))
    }
}
