use crate::Result;
use crate::methods::parameters::ParameterSpec;
use crate::methods::thinning::consensus::ThinningMethod;
use crate::methods::thinning::sparsifier::Sparsifier;
use crate::methods::{Breadcrumbs, GroupShape};

/// ## What it does
/// Drops the largest and the smallest elements of each task vector and adds the weighted rest to the base.
///
/// Of N elements `⌊density·N⌋` stay: those below the `⌊gamma·N⌋` largest, or fewer of the largest go
/// where not enough would be left.
///
/// The sign of an element is elected by the sum of the weighted task vectors (zero counts as plus);
/// those that have the other sign, or are zero, take no part there.
/// ## Why
/// As `breadcrumbs`, and signs are elected where task vectors still meet.
/// ## Cost
/// A pass that finds the cuts and one that writes, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `gamma` | 0.01, per model | `[0, 1]` | share of the largest elements that go |
/// | `normalize` | false | yes, no | divide by the weights of the models that agree |
/// | `rescale` | false | `true` or `l1`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Davari and Belilovsky 2023, "Model Breadcrumbs", <https://arxiv.org/abs/2312.06795>.
/// # Errors
/// A density outside [0, 1] is refused with the recipe's line. So is `rescale: inverse`, which divides by an element's chance
/// to stay: here rank decides.
#[derive(Clone, Copy, Debug)]
pub struct BreadcrumbsTies;

impl ThinningMethod for BreadcrumbsTies {
    const NAME: &str = "breadcrumbs_ties";
    const BY_SIGN: bool = true;
    const PARAMETERS: &[ParameterSpec] = Breadcrumbs::PARAMETERS;

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        Breadcrumbs::ways(group)
    }
}
