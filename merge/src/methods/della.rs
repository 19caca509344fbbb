use crate::Result;
use crate::methods::GroupShape;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, SHARE, WEIGHT};
use crate::methods::thinning::consensus::{
    DENSITY, INT8_MASK, LAMBDA, RESCALE, ThinningMethod, by_rank,
};
use crate::methods::thinning::sparsifier::Sparsifier;

/// ## What it does
/// Drops elements of each task vector by chance, small ones more likely than large ones, and merges
/// the rest as dare does.
///
/// In a row of C elements the one of rank k (0 the smallest) stays with probability
/// `density − epsilon + 2 epsilon k/(C − 1)`. A vector is one row; otherwise rows lie along the second
/// axis.
///
/// The sign of an element is elected by the sum of the weighted task vectors (zero counts as plus);
/// those that have the other sign, or are zero, take no part there.
/// ## Why
/// Large elements matter more, so they stay more often than small ones.
/// ## Cost
/// Two passes over each tensor: ranks within a row must be known before an element is drawn.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `epsilon` | 0.15, per model | `density ± epsilon` within (0, 1) | how far probabilities go from the density |
/// | `normalize` | true | yes, no | divide by the weights of the models that agree |
/// | `rescale` | true | `true` or `l1`, `inverse`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after; `inverse` divides each element by its chance to stay |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Deep et al. 2024, "DELLA-Merging", <https://arxiv.org/abs/2406.11617>; its factor 1/p is
/// `rescale: inverse`.
/// # Errors
/// [`MergeFault::BadValue`](crate::MergeFault::BadValue) when `density ± epsilon` leaves (0, 1).
#[derive(Clone, Copy, Debug)]
pub struct Della;

/// The parameters of della and della_linear; they differ in `normalize`.
pub(super) const fn parameters(normalize: bool) -> [ParameterSpec; 7] {
    [
        WEIGHT,
        DENSITY,
        ParameterSpec::per_member("epsilon", SHARE, Fallback::Number(0.15)),
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(normalize)),
        ParameterSpec::shared("rescale", RESCALE, Fallback::Text("l1")),
        LAMBDA,
        INT8_MASK,
    ]
}

impl ThinningMethod for Della {
    const NAME: &str = "della";
    const BY_SIGN: bool = true;
    const BY_CHANCE: bool = true;
    const PARAMETERS: &[ParameterSpec] = &parameters(true);

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        by_rank(group)
    }
}
