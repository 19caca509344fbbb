use crate::Result;
use crate::methods::GroupShape;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT};
use crate::methods::thinning::consensus::{
    DENSITY, INT8_MASK, LAMBDA, RESCALE_OF_RANKS, ThinningMethod, by_density,
};
use crate::methods::thinning::sparsifier::Sparsifier;
use crate::methods::ties_of_model::{TRIM, TiesOfModel};

/// ## What it does
/// Keeps the largest elements of each task vector `xᵢ − b`, elects a sign for each element, and averages
/// the weighted task vectors that have it: `W = b + λ Σ' wᵢ dᵢ / Σ' wᵢ`.
///
/// The sign of an element is elected by the sum of the weighted task vectors (zero counts as plus);
/// those that have the other sign, or are zero, take no part there.
/// At least one element of a tensor stays unless `density` is 0; of equal magnitudes at the cut the
/// first stay.
/// ## Why
/// Small elements are mostly noise, and task vectors of opposite signs cancel in a sum. Trimming and electing a
/// sign keep the rest apart.
/// ## Cost
/// A pass that finds the cut and one that writes, in bounded memory. `trim: model` reads all inputs four times or
/// more before it writes.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `normalize` | true | yes, no | divide by the weights of the models that agree |
/// | `rescale` | false | `true` or `l1`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `trim` | `tensor` | `tensor`, `model` | `model` takes the largest elements of all tensors together, as the paper's program; all parameters then have one value for all tensors, and `rescale` and `int8_mask` are errors |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Yadav et al. 2023, "TIES-Merging", <https://arxiv.org/abs/2306.01708>, with weights as in mergekit; by default per
/// tensor, as there.
/// # Errors
/// A density outside [0, 1] is refused with the recipe's line. So is `rescale: inverse`, which divides by an element's chance
/// to stay: here rank decides.
#[derive(Clone, Copy, Debug)]
pub struct Ties;

impl ThinningMethod for Ties {
    const NAME: &str = "ties";
    const BY_SIGN: bool = true;
    const PARAMETERS: &[ParameterSpec] = &[
        WEIGHT,
        DENSITY,
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(true)),
        ParameterSpec::shared("rescale", RESCALE_OF_RANKS, Fallback::Text("none")),
        LAMBDA,
        INT8_MASK,
        TRIM,
    ];

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        TiesOfModel::refuse_for_some(group)?;
        by_density(group, |_, density| {
            Ok(match density {
                0.0 => Sparsifier::All,
                share => Sparsifier::Largest { share },
            })
        })
    }
}
