//! The rows of routers.

use std::fmt;
use std::sync::Arc;

use super::MoeExpert;
use crate::error::MoeFault;
use crate::plan::Generator;
use crate::random::Draws;
use crate::{Checkpoint, Result, decode_f32};

/// The least length of a direction, as mergekit has it.
const LEAST: f64 = 1e-8;

/// The tokens of an expert's prompts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptIds {
    /// Of what should go to the expert.
    pub positive: Vec<Vec<u32>>,
    /// Of what should not.
    pub negative: Vec<Vec<u32>>,
}

/// All gates of a model.
pub(super) enum Gates {
    /// Standard normal draws.
    Normal {
        /// Their seed.
        seed: u64,
    },
    /// Draws between the bound and its negative.
    Uniform {
        /// Their seed.
        seed: u64,
        /// The bound.
        bound: f32,
    },
    /// A row for each expert, the same in all layers.
    Given(Vec<Arc<[f32]>>),
}

impl Gates {
    /// The router of a layer.
    pub(super) fn routed(&self, layer: usize) -> Gate {
        self.of(&format!("router {layer}"), 0)
    }

    /// The gate of the shared expert of a layer, which comes behind `n_experts` others.
    pub(super) fn shared(&self, layer: usize, n_experts: usize) -> Gate {
        self.of(&format!("shared {layer}"), n_experts)
    }

    fn of(&self, name: &str, first: usize) -> Gate {
        match self {
            Self::Normal { seed } => Gate::Normal(Draws::new(*seed, name)),
            Self::Uniform { seed, bound } => Gate::Uniform(Draws::new(*seed, name), *bound),
            Self::Given(rows) => Gate::Given(rows[first.min(rows.len())..].to_vec()),
        }
    }
}

/// The elements of a gate.
pub(super) enum Gate {
    /// Nothing but zeros.
    Zero,
    /// Standard normal draws.
    Normal(Draws),
    /// Draws between the bound and its negative.
    Uniform(Draws, f32),
    /// Rows of equal length.
    Given(Vec<Arc<[f32]>>),
}

impl Generator for Gate {
    fn fill(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Zero => out.fill(0.0),
            Self::Normal(draws) => {
                out.fill(0.0);
                draws.add_normal(1.0, first, out);
            }
            Self::Uniform(draws, bound) => {
                draws.fill_uniform(first, out);
                for value in out {
                    *value = (2.0 * *value - 1.0) * bound;
                }
            }
            Self::Given(rows) => {
                let values = rows.iter().flat_map(|row| row.iter().copied());
                let values = values.skip(first);
                out.iter_mut()
                    .zip(values)
                    .for_each(|(out, value)| *out = value);
            }
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::Normal(_) => f.write_str("normal ± 1"),
            Self::Uniform(_, bound) => write!(f, "uniform within ± {bound}"),
            Self::Given(_) => f.write_str("the directions of the prompts' embeddings"),
        }
    }
}

/// The direction of each expert: that of the sum of the embeddings of its positive prompts' tokens, less that of the
/// negative ones.
pub(super) fn cheap_embed(
    base: &Checkpoint,
    key: &'static str,
    experts: &[(String, &MoeExpert)],
    prompts: &[PromptIds],
) -> Result<Vec<Arc<[f32]>>> {
    let info = base.require(key)?;
    let [n_rows, width] = info.shape[..] else {
        return Err(MoeFault::NoPlace {
            path: base.path().into(),
            key: key.to_owned(),
            model_type: "mixture, because it is no table",
        }
        .into());
    };
    let mut bytes = vec![0; info.dtype.bytes_of(width)];
    let mut row = vec![0.0f32; width];
    let mut direction = |texts: &[Vec<u32>]| -> Result<Vec<f64>> {
        let mut sum = vec![0.0f64; width];
        for &id in texts.iter().flatten() {
            let place = usize::try_from(id).ok().filter(|&place| place < n_rows);
            let Some(place) = place else {
                return Err(MoeFault::TokenBeyond {
                    path: base.path().into(),
                    id,
                    key,
                    n_rows,
                }
                .into());
            };
            base.read(key, place * width, &mut bytes)?;
            decode_f32(key, info.dtype, &bytes, &mut row)?;
            for (sum, value) in sum.iter_mut().zip(&row) {
                *sum += f64::from(*value);
            }
        }
        Ok(unit(sum))
    };
    let mut rows = Vec::with_capacity(experts.len());
    for ((what, _), ids) in experts.iter().zip(prompts) {
        let mut own = direction(&ids.positive)?;
        if !ids.negative.is_empty() {
            let against = direction(&ids.negative)?;
            for (own, against) in own.iter_mut().zip(against) {
                *own -= against;
            }
        }
        let own = unit(own);
        let is_one = own.iter().all(|value| value.is_finite());
        if !is_one || own.iter().all(|value| value.abs() < LEAST) {
            return Err(MoeFault::NoDirection { what: what.clone() }.into());
        }
        rows.push(own.into_iter().map(|value| value as f32).collect());
    }
    Ok(rows)
}

/// A vector of length 1.
fn unit(vector: Vec<f64>) -> Vec<f64> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    let length = length.max(LEAST);
    vector.into_iter().map(|value| value / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rows_are_filled_in_pieces() {
        let rows: Vec<Arc<[f32]>> = vec![[1.0, 2.0].into(), [3.0, 4.0].into()];
        let gates = Gates::Given(rows);
        let mut out = [0.0; 2];
        gates.routed(0).fill(1, &mut out);
        assert_eq!(out, [2.0, 3.0]);
        gates.shared(0, 1).fill(0, &mut out);
        assert_eq!(out, [3.0, 4.0]);
    }

    #[test]
    fn draws_have_their_bound_and_deviation() {
        let mut out = vec![0.0; 10_000];
        Gates::Uniform {
            seed: 1,
            bound: 0.5,
        }
        .routed(0)
        .fill(0, &mut out);
        let most = out.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!((0.499..=0.5).contains(&most), "{most}");
        Gates::Normal { seed: 1 }.routed(0).fill(0, &mut out);
        let square = out.iter().map(|value| value * value).sum::<f32>() / 10_000.0;
        // The deviation of this mean is √(2 / 10,000) = 0.014.
        assert!((square - 1.0).abs() < 0.06, "{square}");
        let mut other = vec![0.0; 10_000];
        Gates::Normal { seed: 1 }.routed(1).fill(0, &mut other);
        assert_ne!(out, other);
    }
}
