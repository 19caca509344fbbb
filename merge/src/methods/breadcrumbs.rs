use crate::Result;
use crate::methods::GroupShape;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, SHARE, WEIGHT};
use crate::methods::thinning::consensus::{
    DENSITY, INT8_MASK, LAMBDA, RESCALE_OF_RANKS, ThinningMethod, by_density,
};
use crate::methods::thinning::sparsifier::Sparsifier;

/// ## What it does
/// Drops the largest and the smallest elements of each task vector and adds the weighted rest to the base.
///
/// Of N elements `⌊density·N⌋` stay: those below the `⌊gamma·N⌋` largest, or fewer of the largest go
/// where not enough would be left.
/// ## Why
/// The largest elements disturb other tasks most, and the smallest are noise.
/// ## Cost
/// A pass that finds the cuts and one that writes, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | factor on the model's task vector |
/// | `density` | 1, per model | `[0, 1]` | share of the task vector that stays |
/// | `gamma` | 0.01, per model | `[0, 1]` | share of the largest elements that go |
/// | `normalize` | false | yes, no | divide by the weights of all models |
/// | `rescale` | false | `true` or `l1`, `false` or `none` | `l1` multiplies the rest by the sum of magnitudes before over after |
/// | `lambda` | 1 | any number | factor on the sum |
/// | `int8_mask` | false | yes, no | taken for mergekit's recipes; changes nothing |
/// ## References
/// Davari and Belilovsky 2023, "Model Breadcrumbs", <https://arxiv.org/abs/2312.06795>.
/// # Errors
/// A density outside [0, 1] is refused with the recipe's line. So is `rescale: inverse`, which divides by an element's chance
/// to stay: here rank decides.
#[derive(Clone, Copy, Debug)]
pub struct Breadcrumbs;

impl ThinningMethod for Breadcrumbs {
    const NAME: &str = "breadcrumbs";
    const BY_SIGN: bool = false;
    const PARAMETERS: &[ParameterSpec] = &[
        WEIGHT,
        DENSITY,
        ParameterSpec::per_member("gamma", SHARE, Fallback::Number(0.01)),
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(false)),
        ParameterSpec::shared("rescale", RESCALE_OF_RANKS, Fallback::Text("none")),
        LAMBDA,
        INT8_MASK,
    ];

    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
        let gammas = group.values.numbers("gamma");
        by_density(group, |member, share| {
            let outliers = gammas.get(member).copied().unwrap_or_default();
            Ok(Sparsifier::WithoutOutliers { share, outliers })
        })
    }
}
