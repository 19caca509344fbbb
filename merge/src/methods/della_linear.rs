use crate::Result;
use crate::methods::della::parameters;
use crate::methods::parameters::ParameterSpec;
use crate::methods::thinning::consensus::ThinningMethod;
use crate::methods::thinning::sparsifier::Sparsifier;
use crate::methods::{Della, GroupShape};

/// ## What it does
/// Drops elements of each task vector by chance, small ones more likely than large ones, and merges
/// the rest as dare does.
///
/// In a row of C elements the one of rank k (0 the smallest) stays with probability
/// `density − epsilon + 2 epsilon k/(C − 1)`. A vector is one row; otherwise rows lie along the second
/// axis.
/// ## Why
/// As `della`, without an elected sign: all remaining elements are added.
/// ## Cost
/// Two passes over each tensor: ranks within a row must be known before an element is drawn.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `epsilon` | 0.15, per model | `density ± epsilon` within (0, 1) | how far probabilities go from the density |
/// | `normalize` | false | yes, no | divide by the weights of all models |
/// | `rescale` | true | `true` or `l1`, `inverse`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after; `inverse` divides each element by its chance to stay |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Deep et al. 2024, "DELLA-Merging", <https://arxiv.org/abs/2406.11617>; its factor 1/p is
/// `rescale: inverse`.
/// # Errors
/// [`MergeFault::BadValue`](crate::MergeFault::BadValue) when `density ± epsilon` leaves (0, 1).
#[derive(Clone, Copy, Debug)]
pub struct DellaLinear;

impl ThinningMethod for DellaLinear {
    const NAME: &str = "della_linear";
    const BY_SIGN: bool = false;
    const BY_CHANCE: bool = true;
    const PARAMETERS: &[ParameterSpec] = &parameters(false);

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        Della::ways(group)
    }
}
