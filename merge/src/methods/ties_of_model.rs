use crate::methods::overall::OverallMethod;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT};
use crate::methods::ranking::over_all::{Rank, at_ranks};
use crate::methods::thinning::consensus::{DENSITY, LAMBDA};
use crate::methods::{GroupShape, Groups};
use crate::recipe::Parameters;
use crate::{MergeFault, Result};

/// `trim` of `ties`.
pub(super) const TRIM: ParameterSpec = ParameterSpec::shared(
    "trim",
    Kind::Choice {
        names: &["tensor", MODEL],
        yes: "",
        no: "",
    },
    Fallback::Text("tensor"),
);

const MODEL: &str = "model";

/// `ties` with `trim: model`: the largest elements are those of all tensors together. The manual stands at `Ties`.
#[derive(Clone, Debug, PartialEq)]
pub struct TiesOfModel {
    weights: Vec<f64>,
    densities: Vec<f64>,
    normalize: bool,
    lambda: f64,
}

impl TiesOfModel {
    /// Whether parameters of a recipe ask for it rather than for `ties` of each tensor.
    pub(super) fn is_meant(parameters: &Parameters) -> bool {
        matches!(parameters.text("trim"), Ok(Some(MODEL)))
    }

    /// Refuses `trim: model` where only some tensors have it.
    pub(super) fn refuse_for_some(group: &GroupShape<'_>) -> Result<()> {
        match group.values.text("trim") {
            Some(MODEL) => Err(MergeFault::VariesByTensor {
                slot: group.slot.key.clone(),
                method: "ties with `trim: model`",
                name: "trim",
                place: group.values.place("trim", 0),
            }
            .into()),
            _ => Ok(()),
        }
    }
}

impl OverallMethod for TiesOfModel {
    const NAME: &'static str = "ties";
    const PARAMETERS: &'static [ParameterSpec] = &[
        WEIGHT,
        DENSITY,
        ParameterSpec::shared("normalize", Kind::Flag, Fallback::Flag(true)),
        LAMBDA,
        TRIM,
    ];
    /// The least magnitude that each model keeps.
    type Facts = Vec<f64>;

    fn read(group: &GroupShape<'_>) -> Result<Self> {
        Ok(Self {
            weights: group.values.numbers("weight"),
            densities: group.values.numbers("density"),
            normalize: group.values.flag("normalize"),
            lambda: group.values.number("lambda"),
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self == other
    }

    fn look(&self, groups: &dyn Groups) -> Result<Vec<f64>> {
        let n = groups.n_elements();
        let ranks = self
            .densities
            .iter()
            .enumerate()
            .map(|(row, density)| Rank {
                row,
                place: (n - ((n as f64 * density) as u64).min(n)).saturating_sub(1),
            });
        let ranks: Vec<Rank> = ranks.collect();
        let cuts = at_ranks(groups, &ranks, &|deltas, out| {
            for (out, delta) in out.iter_mut().zip(deltas) {
                *out = delta.abs();
            }
        })?;
        let cuts = cuts.into_iter().zip(&self.densities);
        Ok(cuts
            .map(|(cut, &density)| match density {
                0.0 => f64::INFINITY,
                1.0.. => 0.0,
                _ => cut,
            })
            .collect())
    }

    fn change(&self, cuts: &Vec<f64>, deltas: &[f64]) -> f64 {
        let kept = |index: usize| match deltas[index].abs() >= cuts[index] {
            true => self.weights[index] * deltas[index],
            false => 0.0,
        };
        let sum: f64 = (0..deltas.len()).map(kept).sum();
        let (mut agreed, mut share) = (0.0, 0.0);
        for index in 0..deltas.len() {
            let value = kept(index);
            if (sum >= 0.0 && value > 0.0) || (sum < 0.0 && value < 0.0) {
                agreed += value;
                share += self.weights[index];
            }
        }
        match self.normalize && share != 0.0 {
            true => self.lambda * agreed / share,
            false => self.lambda * agreed,
        }
    }
}
