//! Matches the experts of one checkpoint with those of another.

use ndarray::{Array2, Axis};
use serde::Serialize;

use super::Mixture;
use super::assignment::assign_in_groups;
use super::ffn::{Ffn, ffns_of};
use super::outputs::{Observed, outputs_similarity};
use super::similarity::{Elements, Experts, cosines, cosines_of, router_cosines};
use super::units::read_matrix;
use crate::random::Draws;
use crate::{Checkpoint, Result};

/// The experts of a model that stand in the places of another's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Matching {
    /// The model whose experts are moved.
    pub model: String,
    /// The mixture, by what the names of its tensors begin with.
    pub mixture: String,
    /// For each expert of the model that is kept in order, the number of the expert that is moved to its place.
    pub experts: Vec<usize>,
    /// The mean cosine between experts that are matched.
    pub cosine: f64,
    /// The mean cosine between experts of the same number.
    pub cosine_in_place: f64,
}

impl Matching {
    /// The number of experts that change their place.
    #[must_use]
    pub fn n_moved(&self) -> usize {
        let experts = self.experts.iter().enumerate();
        experts.filter(|(place, expert)| place != *expert).count()
    }

    /// The best matching by cosines, `(experts in order, experts to be moved)`. Where that leaves a choice, the rows of
    /// the router decide, then the numbers. Experts of one of `n_groups` groups stay together.
    pub(crate) fn best(
        model: String,
        mixture: String,
        n_groups: usize,
        cosines: &Array2<f64>,
        of_router: Option<&Array2<f64>>,
    ) -> Self {
        let n = cosines.nrows();
        let experts = assign_in_groups(n, n_groups, |row, column| {
            let router = of_router.map_or(0.0, |of_router| of_router[(row, column)]);
            let in_place = f64::from(u8::from(row == column));
            cosines[(row, column)] + ROUTER_SHARE * router + IN_PLACE_SHARE * in_place
        });
        let mean = |column_of: &dyn Fn(usize) -> usize| -> f64 {
            let sum: f64 = (0..n).map(|row| cosines[(row, column_of(row))]).sum();
            sum / n.max(1) as f64
        };
        Self {
            model,
            mixture,
            cosine: mean(&|row| experts[row]),
            cosine_in_place: mean(&|row| row),
            experts,
        }
    }
}

/// Weights of what decides between experts that are alike: less than any difference that matters.
const ROUTER_SHARE: f64 = 1e-4;
const IN_PLACE_SHARE: f64 = 1e-6;

/// Directions that experts are compared along where their units may be in any order.
const N_DIRECTIONS: usize = 8;

/// The measure by which experts are matched.
#[derive(Clone, Copy)]
pub(crate) enum By<'a> {
    /// All their weights.
    Weights,
    /// Numbers that the order of hidden units does not change: the products of the layers out of the units with those
    /// into them, along a few drawn directions.
    WeightsOfAnyUnits,
    /// Their outputs on data: in the model that is kept in order, and in the other.
    Outputs([&'a Observed; 2]),
}

/// Matches the experts of a model with those of `reference`, both in `n_groups` groups.
///
/// # Errors
/// [`crate::MergeFault::NoOutputs`], and when a tensor cannot be read.
pub(crate) fn match_experts(
    model: String,
    n_groups: usize,
    (reference, mixture): (&Checkpoint, &Mixture),
    (source, theirs): (&Checkpoint, &Mixture),
    by: By<'_>,
) -> Result<Matching> {
    let found = match by {
        By::Weights => {
            let one = Experts {
                source: reference,
                mixture,
            };
            let other = Experts {
                source,
                mixture: theirs,
            };
            cosines(one, other, Elements::All)?.0
        }
        By::WeightsOfAnyUnits => {
            let own = signatures(reference, mixture)?;
            let others = signatures(source, theirs)?;
            cosines_of(&own, &others)
        }
        By::Outputs([own, others]) => {
            outputs_similarity((reference, mixture, own), (source, theirs, others))?
        }
    };
    let router = router_cosines((reference, mixture), (source, theirs), Elements::All)?;
    let router = router.map(|(cosines, _)| cosines);
    let name = mixture.host.clone();
    Ok(Matching::best(
        model,
        name,
        n_groups,
        &found,
        router.as_ref(),
    ))
}

/// The products of an expert along a few directions, whatever the order of its hidden units: `(experts, numbers)`.
fn signatures(source: &Checkpoint, mixture: &Mixture) -> Result<Array2<f32>> {
    let networks = ffns_of(mixture);
    let mut rows = Vec::with_capacity(networks.len());
    for network in &networks {
        rows.push(signature(source, network)?);
    }
    let width = rows.first().map_or(0, Vec::len);
    let mut all = Array2::zeros((mixture.n_experts, width));
    for (mut to, row) in all.rows_mut().into_iter().zip(rows) {
        for (to, value) in to.iter_mut().zip(row) {
            *to = value;
        }
    }
    Ok(all)
}

/// `out · into · x` for each layer into the units, with `x` drawn.
fn signature(source: &Checkpoint, network: &Ffn) -> Result<Vec<f32>> {
    let Some((out, into)) = network.strands.split_last() else {
        return Ok(Vec::new());
    };
    // (units, width)
    let out_of = read_matrix(source, out)?;
    let mut signature = Vec::new();
    for strand in into {
        for part in 0..strand.steps.len() {
            let into = read_matrix(source, &strand.only(part))?;
            let mut directions = Array2::zeros((into.ncols(), N_DIRECTIONS));
            let draws = Draws::new(0, "directions");
            draws.add_normal(1.0, 0, directions.as_slice_mut().unwrap_or_default());
            let along = out_of.t().dot(&into.dot(&directions));
            let norm = along.iter().map(|value| value * value).sum::<f32>().sqrt();
            let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
            signature.extend(
                along
                    .lanes(Axis(0))
                    .into_iter()
                    .flatten()
                    .map(|value| value * scale),
            );
        }
    }
    Ok(signature)
}
