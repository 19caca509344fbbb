//! The steps that task_arithmetic, ties, dare, breadcrumbs and della share: thin, weigh, agree, add.

use std::sync::Arc;

use crate::methods::kernels::sums::LANES;
use crate::methods::kernels::weighted::Deltas;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, weighted_names};
use crate::methods::ranking::by_count::{BLOCK, length};
use crate::methods::thinning::sparsifier::{Rescale, Row, Sparsifier, Thinning};
use crate::methods::thinning::task_vectors::{Mask, Thinned, masks};
use crate::methods::{Base, MergeMethod, Needs, Values};
use crate::methods::{
    Chunk, ElementKernel, Elementwise, GroupShape, Operation, Passes, Real, Survey, Value, reals,
};
use crate::{MergeFault, Result};

/// `rescale` of methods that drop elements by chance.
pub(in crate::methods) const RESCALE: Kind = Kind::Choice {
    names: &["l1", "inverse", "none"],
    yes: "l1",
    no: "none",
};

/// `rescale` of methods that choose elements by rank: none has a chance to stay that `inverse` could divide by.
pub(in crate::methods) const RESCALE_OF_RANKS: Kind = Kind::Choice {
    names: &["l1", "none"],
    yes: "l1",
    no: "none",
};

/// `lambda` as all these methods take it.
pub(in crate::methods) const LAMBDA: ParameterSpec = ParameterSpec::shared(
    "lambda",
    crate::methods::parameters::FINITE,
    Fallback::Number(1.0),
);

/// Taken and of no effect: mergekit only stores its masks by it.
pub(in crate::methods) const INT8_MASK: ParameterSpec =
    ParameterSpec::shared("int8_mask", Kind::Flag, Fallback::Flag(false));

/// `density` as all these methods take it.
pub(in crate::methods) const DENSITY: ParameterSpec = ParameterSpec::per_member(
    "density",
    crate::methods::parameters::SHARE,
    Fallback::Number(1.0),
);

/// A method that thins task vectors in its own way and adds the rest to the base.
pub(in crate::methods) trait ThinningMethod: Send + Sync {
    /// The name in recipes.
    const NAME: &'static str;
    /// Whether only those elements count that have the elected sign.
    const BY_SIGN: bool;
    /// Whether elements go by chance.
    const BY_CHANCE: bool = false;
    /// The parameters.
    const PARAMETERS: &'static [ParameterSpec];

    /// The sparsifier of each member of a group.
    fn ways(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>>;
}

impl<M: ThinningMethod> MergeMethod for M {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 0, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        M::PARAMETERS
    }

    fn n_drawn(&self, values: &Values) -> usize {
        let densities = values.numbers("density");
        match M::BY_CHANCE {
            true => densities.iter().filter(|&&density| density < 1.0).count(),
            false => 0,
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        operation(group, M::ways(group)?, M::BY_SIGN)
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let weights = group.values.numbers("weight");
        let lambda = group.values.number("lambda");
        format!(
            "base + {lambda} ({}) of the differences",
            weighted_names(&weights, group.members)
        )
    }
}

/// The operation for a group whose members are thinned in these ways.
fn operation(group: &GroupShape<'_>, members: Vec<Sparsifier>, by_sign: bool) -> Result<Operation> {
    let values = group.values;
    let (normalize, lambda) = (values.flag("normalize"), values.number("lambda"));
    if members.is_empty() {
        return Ok(Operation::TakeBase);
    }
    let weights = values.numbers("weight");
    let thinning = Thinning {
        members,
        rescale: Rescale::by_name(values.text("rescale")),
        row: Row::of(group.shape),
        draws: group.draws.clone(),
    };
    if normalize && !by_sign {
        // Refused here as everywhere: the published program divides by 1 instead.
        values.shares(&group.slot.key, true)?;
    }
    if !by_sign && !thinning.looks() {
        let weights = values.shares(&group.slot.key, normalize)?;
        let factors = weights.iter().map(|weight| lambda * weight).collect();
        return Ok(Operation::Elementwise(Arc::new(Deltas(factors))));
    }
    Ok(Operation::Survey(Arc::new(Merge {
        thinning,
        weights,
        by_sign,
        normalize,
        lambda,
    })))
}

/// Members of a group by a rule of each one's `density`; those with a density of 1 stay whole.
pub(in crate::methods) fn by_density(
    group: &GroupShape<'_>,
    way: impl Fn(usize, f64) -> Result<Sparsifier>,
) -> Result<Vec<Sparsifier>> {
    let densities = group.values.numbers("density");
    (densities.iter().enumerate())
        .map(|(member, &density)| match density {
            1.0.. => Ok(Sparsifier::None),
            density => way(member, density),
        })
        .collect()
}

/// The way of della: probabilities around the density.
pub(in crate::methods) fn by_rank(group: &GroupShape<'_>) -> Result<Vec<Sparsifier>> {
    let epsilons = group.values.numbers("epsilon");
    by_density(group, |member, density| {
        let epsilon = epsilons.get(member).copied().unwrap_or_default();
        let (low, high) = (density - epsilon, density + epsilon);
        if low <= 0.0 || high >= 1.0 {
            let name = match group.values.place("epsilon", member).line {
                0 => "density",
                _ => "epsilon",
            };
            return Err(MergeFault::BadValue {
                slot: group.slot.key.clone(),
                name,
                wanted: format!(
                    "such that density ± epsilon, here {low:.4} and {high:.4}, lie between 0 and 1"
                ),
                place: group.values.place(name, member),
            }
            .into());
        }
        Ok(Sparsifier::ChanceByRank { low, high })
    })
}

struct Merge {
    thinning: Thinning,
    weights: Vec<f64>,
    by_sign: bool,
    normalize: bool,
    lambda: f64,
}

impl Survey for Merge {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        Ok(Arc::new(Ready {
            thinned: self.thinning.survey(data)?,
            unit: self.unit(),
            weights: self.weights.clone(),
            by_sign: self.by_sign,
            normalize: self.normalize,
            lambda: self.lambda,
        }))
    }

    fn kept_bytes(&self, n_elements: usize) -> u64 {
        self.thinning.kept_bytes(n_elements)
    }

    fn unit(&self) -> usize {
        let by_rank = |way: &Sparsifier| matches!(way, Sparsifier::ChanceByRank { .. });
        match self.thinning.members.iter().any(by_rank) {
            true => self.thinning.row.unit(),
            false => 1,
        }
    }
}

struct Ready {
    thinned: Thinned,
    unit: usize,
    weights: Vec<f64>,
    by_sign: bool,
    normalize: bool,
    lambda: f64,
}

impl Elementwise for Ready {
    fn unit(&self) -> usize {
        self.unit
    }

    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let mut terms = self.thinned.terms(chunk);
        // In f64, for terms may all but cancel each other or the base.
        let mut weighted = vec![[0.0; BLOCK]; if self.by_sign { terms.len() } else { 0 }];
        let base = chunk.base.unwrap_or_default();
        let factor = match self.normalize && !self.by_sign {
            true => self.lambda / self.weights.iter().sum::<f64>(),
            false => self.lambda,
        };
        if let Some(masks) = masks(&terms)
            && !self.by_sign
        {
            return self.add_masked(chunk, &masks, factor, out);
        }
        for first in (0..length(chunk)).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(out.len());
            let n = block.len();
            let mut sum = [0.0; BLOCK];
            for (index, (term, &weight)) in terms.iter_mut().zip(&self.weights).enumerate() {
                match weighted.get_mut(index) {
                    Some(own) => {
                        let own = &mut own[..n];
                        term.each(chunk, weight, first, own, |own, value| *own = value);
                        for (sum, &own) in sum.iter_mut().zip(&*own) {
                            *sum += own;
                        }
                    }
                    None => {
                        let sum = &mut sum[..n];
                        term.each(chunk, weight, first, sum, add);
                    }
                }
            }
            if self.by_sign {
                self.agree(&weighted, &mut sum);
            }
            add_to(&base[block.clone()], factor, &sum[..n], &mut out[block]);
        }
    }
}

/// Adds a term to a sum.
#[inline(always)]
fn add(sum: &mut f64, term: f64) {
    *sum += term;
}

/// `out = base + factor · sum`.
#[inline(always)]
fn add_to<V: Value>(base: &[V], factor: f64, sum: &[f64], out: &mut [V::Real]) {
    for ((out, base), &sum) in out.iter_mut().zip(reals(base)).zip(sum) {
        *out = Real::from_f64(base.to_f64() + factor * sum);
    }
}

impl Ready {
    /// As [`Elementwise::combine`] where all members are thinned by masks and all terms count, in one go.
    #[inline(always)]
    fn add_masked<V: Value>(
        &self,
        chunk: &Chunk<'_, V>,
        masks: &[Mask<'_>],
        factor: f64,
        out: &mut [V::Real],
    ) {
        let base = chunk.base.unwrap_or_default();
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        let (whole_base, rest_base) = base.as_chunks::<LANES>();
        let n_whole = whole.len();
        let weighted = || chunk.members.iter().zip(masks).zip(&self.weights);
        for (index, (out, base)) in whole.iter_mut().zip(whole_base).enumerate() {
            // All in arrays of this loop's own: of memory that `out` might share, elements are read one
            // by one.
            let mut base = base.map(V::real);
            let mut sum = [0.0; LANES];
            for ((member, mask), &weight) in weighted() {
                let member = &member.as_chunks::<LANES>().0[index];
                mask.each(index, weight, member, &base, &mut sum, add);
            }
            for (base, sum) in base.iter_mut().zip(sum) {
                *base = Real::from_f64(base.to_f64() + factor * sum);
            }
            *out = base;
        }
        let mut sum = [0.0; LANES];
        let sum = &mut sum[..rest.len()];
        for ((member, mask), &weight) in weighted() {
            let member = member.as_chunks::<LANES>().1;
            mask.each(n_whole, weight, member, rest_base, sum, add);
        }
        add_to(rest_base, factor, sum, rest);
    }

    /// Leaves the sum of those terms that have the sign of the sum of all.
    #[inline(always)]
    fn agree(&self, weighted: &[[f64; BLOCK]], sum: &mut [f64; BLOCK]) {
        let mut agreed = [0.0; BLOCK];
        let mut weight_of = [0.0; BLOCK];
        for (values, &weight) in weighted.iter().zip(&self.weights) {
            let places = agreed.iter_mut().zip(&mut weight_of).zip(&*sum);
            for (((agreed, share), &sum), &value) in places.zip(values) {
                let agrees = if sum >= 0.0 { value > 0.0 } else { value < 0.0 };
                *agreed += if agrees { value } else { 0.0 };
                *share += if agrees { weight } else { 0.0 };
            }
        }
        if self.normalize {
            for (agreed, &share) in agreed.iter_mut().zip(&weight_of) {
                *agreed /= if share == 0.0 { 1.0 } else { share };
            }
        }
        *sum = agreed;
    }
}
