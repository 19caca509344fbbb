use crate::Result;
use crate::methods::matrices::FACTOR;
use crate::methods::overall::OverallMethod;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, SHARE};
use crate::methods::ranking::over_all::{Rank, at_ranks};
use crate::methods::thinning::consensus::LAMBDA;
use crate::methods::{GroupShape, Groups};

/// ## What it does
/// Weighs each element of a task vector by its size within its model and by how well it agrees with the other models,
/// and drops all but the best (PCB, parameter competition balancing). All tensors of a model are one vector `Dᵢ` of N
/// elements. `Aᵢ` is `|Dᵢ|`, cut at the shares `clamp` from below and above, and `norm` stretches from 0 to 1. An
/// element has the weight `bᵢ = exp(T norm(Aᵢ)²) tanh(Dᵢ Σⱼ sign(Dⱼ) norm(Aⱼ))`; `gᵢ` is 0 below the share `1 −
/// ratio` of all `bᵢ`, and stretches from 0 to 1 above. `W = b + λ Σ wᵢ sign(Dᵢ) Aᵢ gᵢ / Σ gᵢ`, and the base where no
/// model's element is left.
/// ## Why
/// Elements compete: within a model by size, between models by agreement. Most can go.
/// ## Cost
/// All inputs are read four times or more before the pass that writes, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `ratio` | 0.05 | `[0, 1]` | share of each model's elements that stay |
/// | `clamp` | 0.01 | `[0, 0.5]` | share of the smallest, and of the largest, elements that are cut |
/// | `agreement` | `normalized` | `normalized`, `raw` | `raw` has `tanh(Dᵢ Σⱼ Dⱼ)`, as the first published program, with a `clamp` of 0.0001 and a `ratio` of 0.1 |
/// | `weight` | 1, per model | any number | factor on the model's part; the published program has 1.2 |
/// | `lambda` | 1 | any number | factor on the merged task vector |
///
/// Parameters have one value for all tensors.
/// ## References
/// Du et al. 2024, "Parameter Competition Balancing for Model Merging", <https://arxiv.org/abs/2410.02396>.
/// # Errors
/// [`MergeFault::VariesByTensor`](crate::MergeFault::VariesByTensor) for parameters by names of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Pcb {
    ratio: f64,
    clamp: f64,
    is_raw: bool,
    /// `λ wᵢ`.
    factors: Vec<f64>,
}

const HALF: Kind = Kind::Number {
    range: "a number from 0 to 0.5",
    holds: |value| (0.0..=0.5).contains(&value),
};

const AGREEMENT: Kind = Kind::Choice {
    names: &["normalized", "raw"],
    yes: "",
    no: "",
};

/// Least sum of `gᵢ` that is divided by, as published.
const LEAST_SUM: f64 = 1e-12;

/// The values at which scores are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    low: f64,
    high: f64,
}

impl Bounds {
    fn cut(self, value: f64) -> f64 {
        value.max(self.low).min(self.high)
    }

    /// From 0 at the lower to 1 at the upper bound.
    fn stretched(self, value: f64) -> f64 {
        match self.high > self.low {
            true => (self.cut(value) - self.low) / (self.high - self.low),
            false => 0.0,
        }
    }
}

/// The facts about each model.
pub struct Seen {
    magnitudes: Vec<Bounds>,
    weights: Vec<Bounds>,
}

impl OverallMethod for Pcb {
    const NAME: &'static str = "pcb";
    const PARAMETERS: &'static [ParameterSpec] = &[
        FACTOR,
        LAMBDA,
        ParameterSpec::shared("ratio", SHARE, Fallback::Number(0.05)),
        ParameterSpec::shared("clamp", HALF, Fallback::Number(0.01)),
        ParameterSpec::shared("agreement", AGREEMENT, Fallback::Text("normalized")),
    ];
    const MIN_INPUTS: usize = 2;
    type Facts = Seen;

    fn read(group: &GroupShape<'_>) -> Result<Self> {
        let values = group.values;
        let lambda = values.number("lambda");
        let weights = values.numbers("weight");
        Ok(Self {
            ratio: values.number("ratio"),
            clamp: values.number("clamp"),
            is_raw: values.text("agreement") == Some("raw"),
            factors: weights.iter().map(|weight| lambda * weight).collect(),
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self == other
    }

    fn look(&self, groups: &dyn Groups) -> Result<Seen> {
        let magnitudes = self.bounds(groups, (self.clamp, self.clamp), &|deltas, out| {
            for (out, delta) in out.iter_mut().zip(deltas) {
                *out = delta.abs();
            }
        })?;
        let weights = self.bounds(groups, (1.0 - self.ratio, 0.0), &|deltas, out| {
            self.weigh(&magnitudes, deltas, out);
        })?;
        Ok(Seen {
            magnitudes,
            weights,
        })
    }

    fn change(&self, seen: &Seen, deltas: &[f64]) -> f64 {
        let mut weights = vec![0.0; deltas.len()];
        self.weigh(&seen.magnitudes, deltas, &mut weights);
        let (mut sum, mut total) = (0.0, 0.0);
        for (index, &delta) in deltas.iter().enumerate() {
            let share = seen.weights[index].stretched(weights[index]);
            total += share;
            let size = signum(delta) * seen.magnitudes[index].cut(delta.abs());
            sum += self.factors[index] * size * share;
        }
        sum / total.max(LEAST_SUM)
    }
}

impl Pcb {
    /// Each model's values at two shares of all elements, from below and from above.
    fn bounds(
        &self,
        groups: &dyn Groups,
        (below, above): (f64, f64),
        values: &(dyn Fn(&[f64], &mut [f64]) + Sync),
    ) -> Result<Vec<Bounds>> {
        let n = groups.n_elements();
        let last = n.saturating_sub(1);
        let low = ((n as f64 * below) as u64).min(last);
        let high = ((n as f64 * (1.0 - above) - 1.0).max(0.0) as u64).clamp(low, last);
        let ranks: Vec<Rank> = (0..self.factors.len())
            .flat_map(|row| [low, high].map(|place| Rank { row, place }))
            .collect();
        let found = at_ranks(groups, &ranks, values)?;
        let pairs = found.chunks_exact(2);
        Ok(pairs
            .map(|pair| Bounds {
                low: pair[0],
                high: pair[1],
            })
            .collect())
    }

    /// `bᵢ` of each model.
    fn weigh(&self, magnitudes: &[Bounds], deltas: &[f64], out: &mut [f64]) {
        let normed = |index: usize| magnitudes[index].stretched(deltas[index].abs());
        let common: f64 = match self.is_raw {
            true => deltas.iter().sum(),
            false => (0..deltas.len())
                .map(|index| signum(deltas[index]) * normed(index))
                .sum(),
        };
        let n = deltas.len() as f64;
        for (index, out) in out.iter_mut().enumerate() {
            let size = normed(index);
            *out = (n * size * size).exp() * (deltas[index] * common).tanh();
        }
    }
}

/// The sign; 0 of 0.
fn signum(value: f64) -> f64 {
    match value == 0.0 {
        true => 0.0,
        false => value.signum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_in_which_models_agree_outweighs_one_in_which_they_do_not() {
        let pcb = Pcb {
            ratio: 0.5,
            clamp: 0.0,
            is_raw: true,
            factors: vec![1.0; 2],
        };
        let magnitudes = [Bounds {
            low: 0.0,
            high: 2.0,
        }; 2];
        let mut weights = [0.0; 2];
        pcb.weigh(&magnitudes, &[1.0, 2.0], &mut weights);
        // exp(2 · ¼) tanh(1 · 3) and exp(2 · 1) tanh(2 · 3).
        assert_eq!(
            weights,
            [0.5f64.exp() * 3f64.tanh(), 2f64.exp() * 6f64.tanh()]
        );
        pcb.weigh(&magnitudes, &[1.0, -2.0], &mut weights);
        assert!(weights[0] < 0.0 && weights[1] > 0.0);
        let seen = Seen {
            magnitudes: magnitudes.to_vec(),
            weights: vec![
                Bounds {
                    low: 0.0,
                    high: 4.0,
                };
                2
            ],
        };
        // Only the second model's element is left.
        assert!((pcb.change(&seen, &[1.0, -2.0]) + 2.0).abs() < 1e-12);
    }
}
