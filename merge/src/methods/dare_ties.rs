use crate::Result;
use crate::methods::parameters::ParameterSpec;
use crate::methods::thinning::consensus::ThinningMethod;
use crate::methods::thinning::sparsifier::Sparsifier;
use crate::methods::{DareLinear, GroupShape};

/// ## What it does
/// Drops elements of each task vector by chance, rescales the rest, and adds those that have the
/// elected sign: `W = b + λ Σ' wᵢ d̃ᵢ`.
///
/// The sign of an element is elected by the sum of the weighted task vectors (zero counts as plus);
/// those that have the other sign, or are zero, take no part there.
///
/// Masks are drawn by seed, tensor, model and element (recipe keys `seed` and `rng`), so that they do
/// not depend on what else is merged; `rng: mergekit` gives mergekit's masks bit for bit.
/// ## Why
/// As `dare_linear`, and signs are elected where task vectors still meet.
/// ## Cost
/// Up to two passes over each tensor: one draws the masks and sums up the remaining elements, one writes. A mask takes
/// one bit an element.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `normalize` | false | yes, no | divide by the weights of the models that agree |
/// | `rescale` | true | `true` or `l1`, `inverse`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after; `inverse` divides each element by its chance to stay |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Yu et al. 2024, "Language Models are Super Mario", <https://arxiv.org/abs/2311.03099>; its factor
/// 1/density is `rescale: inverse`.
/// # Errors
/// A density outside [0, 1] is refused with the recipe's line.
#[derive(Clone, Copy, Debug)]
pub struct DareTies;

impl ThinningMethod for DareTies {
    const NAME: &str = "dare_ties";
    const BY_SIGN: bool = true;
    const BY_CHANCE: bool = true;
    const PARAMETERS: &[ParameterSpec] = DareLinear::PARAMETERS;

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        DareLinear::ways(group)
    }
}
