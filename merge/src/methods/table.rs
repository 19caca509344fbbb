//! The table of merge methods: recipes, messages, documentation and tests read it.

use super::added;
use super::matrices::ByMatrix;
use super::overall::Overall;
use super::{
    Ace, ActMat, ArceeFusion, Arithmetic, Aswudi, Breadcrumbs, BreadcrumbsTies, Cart, Consensus,
    DareLinear, DareTies, Della, DellaLinear, Emr, Fisher, Interpolate, IsoC, IsoCts, Karcher,
    Knots, Linear, Lines, LocalizeAndStitch, Mats, MergeMethod, ModelStock, MultiSlerp, NearSwap,
    NuSlerp, OptMerge, Passthrough, Pcb, Ram, RamPlus, RegMean, Sce, Slerp, Swudi, TallMasks,
    TaskArithmetic, Ties, TiesOfModel, TsvM, Wudi,
};
use crate::recipe::Parameters;
use crate::{Error, Result};

/// One method.
pub struct MethodRow {
    /// The name in recipes.
    pub name: &'static str,
    /// Whether a recipe with a single model and nothing else asks for a merge of its experts.
    pub merges_experts: bool,
    make: fn(&Parameters, bool) -> Result<Box<dyn MergeMethod>>,
}

impl MethodRow {
    /// A method of checkpoints whose parameters are read for each tensor.
    const fn of_checkpoints(
        name: &'static str,
        make: fn(&Parameters, bool) -> Result<Box<dyn MergeMethod>>,
    ) -> Self {
        Self {
            name,
            merges_experts: false,
            make,
        }
    }

    /// A method of experts, which reads its parameters once for the whole merge.
    const fn of_experts(
        name: &'static str,
        make: fn(&Parameters, bool) -> Result<Box<dyn MergeMethod>>,
    ) -> Self {
        Self {
            name,
            merges_experts: true,
            make,
        }
    }
}

/// All methods, in the order of the documentation.
pub const METHODS: &[MethodRow] = &[
    MethodRow::of_experts("interpolate", |parameters, _| {
        Ok(Box::new(Interpolate::from_parameters(parameters)?))
    }),
    MethodRow::of_experts("arithmetic", |parameters, as_published| {
        Ok(Box::new(Arithmetic::from_parameters(
            parameters,
            as_published,
        )?))
    }),
    MethodRow::of_experts("regmean", |parameters, as_published| {
        if ActMat::is_meant(parameters) {
            return Ok(Box::new(ByMatrix(ActMat)));
        }
        Ok(Box::new(RegMean::from_parameters(
            parameters,
            as_published,
        )?))
    }),
    MethodRow::of_checkpoints("linear", |_, _| Ok(Box::new(Linear))),
    MethodRow::of_checkpoints("slerp", |_, _| Ok(Box::new(Slerp))),
    MethodRow::of_checkpoints("nuslerp", |_, _| Ok(Box::new(NuSlerp))),
    MethodRow::of_checkpoints("multislerp", |_, _| Ok(Box::new(MultiSlerp))),
    MethodRow::of_checkpoints("karcher", |_, _| Ok(Box::new(Karcher))),
    MethodRow::of_checkpoints("task_arithmetic", |_, _| Ok(Box::new(TaskArithmetic))),
    MethodRow::of_checkpoints("ties", |parameters, _| {
        match TiesOfModel::is_meant(parameters) {
            true => Ok(Box::new(Overall::<TiesOfModel>::new())),
            false => Ok(Box::new(Ties)),
        }
    }),
    MethodRow::of_checkpoints("dare_linear", |_, _| Ok(Box::new(DareLinear))),
    MethodRow::of_checkpoints("dare_ties", |_, _| Ok(Box::new(DareTies))),
    MethodRow::of_checkpoints("breadcrumbs", |_, _| Ok(Box::new(Breadcrumbs))),
    MethodRow::of_checkpoints("breadcrumbs_ties", |_, _| Ok(Box::new(BreadcrumbsTies))),
    MethodRow::of_checkpoints("della", |_, _| Ok(Box::new(Della))),
    MethodRow::of_checkpoints("della_linear", |_, _| Ok(Box::new(DellaLinear))),
    MethodRow::of_checkpoints("sce", |_, _| Ok(Box::new(Sce))),
    MethodRow::of_checkpoints("model_stock", |_, _| Ok(Box::new(ModelStock))),
    MethodRow::of_checkpoints("nearswap", |_, _| Ok(Box::new(NearSwap))),
    MethodRow::of_checkpoints("arcee_fusion", |_, _| Ok(Box::new(ArceeFusion))),
    MethodRow::of_checkpoints("ram", |_, _| Ok(Box::new(Ram))),
    MethodRow::of_checkpoints("ramplus_tl", |_, _| Ok(Box::new(RamPlus))),
    MethodRow::of_checkpoints("passthrough", |_, _| Ok(Box::new(Passthrough))),
    MethodRow::of_checkpoints("fisher", |_, _| Ok(Box::new(Fisher))),
    MethodRow::of_checkpoints("mats", |parameters, _| {
        Ok(Box::new(Mats::from_parameters(parameters)?))
    }),
    MethodRow::of_checkpoints("tsv_m", |_, _| Ok(Box::new(ByMatrix(TsvM)))),
    MethodRow::of_checkpoints("iso_c", |_, _| Ok(Box::new(ByMatrix(IsoC)))),
    MethodRow::of_checkpoints("iso_cts", |_, _| Ok(Box::new(ByMatrix(IsoCts)))),
    MethodRow::of_checkpoints("wudi", |_, _| Ok(Box::new(ByMatrix(Wudi)))),
    MethodRow::of_checkpoints("optmerge", |_, _| Ok(Box::new(ByMatrix(OptMerge)))),
    MethodRow::of_checkpoints("swudi", |_, _| Ok(Box::new(ByMatrix(Swudi)))),
    MethodRow::of_checkpoints("aswudi", |_, _| Ok(Box::new(ByMatrix(Aswudi)))),
    MethodRow::of_checkpoints("ace", |_, _| Ok(Box::new(ByMatrix(Ace)))),
    MethodRow::of_checkpoints("cart", |_, _| Ok(Box::new(ByMatrix(Cart)))),
    MethodRow::of_checkpoints("knots", |_, _| Ok(Box::new(Knots::default()))),
    MethodRow::of_checkpoints("lines", |parameters, as_published| {
        Ok(Box::new(Lines::from_parameters(parameters, as_published)?))
    }),
    MethodRow::of_checkpoints("consensus", |_, _| Ok(Box::new(Consensus))),
    MethodRow::of_checkpoints("tall_masks", |_, _| Ok(Box::new(TallMasks))),
    MethodRow::of_checkpoints("pcb", |_, _| Ok(Box::new(Overall::<Pcb>::new()))),
    MethodRow::of_checkpoints("emr", |_, _| Ok(Box::new(Emr))),
    MethodRow::of_checkpoints("localize_and_stitch", |_, _| {
        Ok(Box::new(Overall::<LocalizeAndStitch>::new()))
    }),
];

/// Names of all methods, for messages and documentation.
pub const NAMES: [&str; METHODS.len()] = {
    let mut names = [""; METHODS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = METHODS[index].name;
        index += 1;
    }
    names
};

/// The row of the method called `name`.
#[must_use]
pub(crate) fn row(name: &str) -> Option<&'static MethodRow> {
    METHODS.iter().find(|row| row.name == name)
}

/// The method of this name with these parameters: one of [`METHODS`], or one that was added by [`super::add`].
///
/// # Errors
/// [`Error::UnknownMethod`], or the fault of the parameters.
pub fn by_name(
    name: &str,
    parameters: &Parameters,
    as_published: bool,
) -> Result<Box<dyn MergeMethod>> {
    if let Some(row) = row(name) {
        return (row.make)(parameters, as_published);
    }
    if let Some(make) = added::of_name(name) {
        return make(parameters, as_published);
    }
    let mut known = NAMES.map(str::to_owned).to_vec();
    known.extend(added::names());
    Err(Error::UnknownMethod {
        name: name.to_owned(),
        known: known.join(", "),
    })
}
