//! The settings of rotary positions.
//!
//! Source: `_compute_llama3_parameters` and its neighbors in transformers' `modeling_rope_utils.py`; llama.cpp's
//! `generate_extra_tensors`.

use std::f64::consts::PI;
use std::path::Path;

use serde_json::Value;

use super::super::architectures::Architecture;
use super::settings::refused;
use crate::Result;
use crate::io::GgufHead;

/// The base of frequencies without a setting.
const BASE: f64 = 10_000.0;

/// Settings that say nothing about numbers, or that every kind of scaling has.
const KNOWN: [&str; 5] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
];

/// Rotary positions: the base of their frequencies, and how these are scaled.
pub(super) struct Rope {
    base: f64,
    scaling: Scaling,
}

enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        context: u32,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: Option<u32>,
    },
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` of newer configurations.
    pub(super) fn new(path: &Path, config: &Value, architecture: &Architecture) -> Result<Self> {
        let parameters = config
            .get("rope_parameters")
            .filter(|value| !value.is_null());
        let (place, scaling) = match parameters {
            Some(of) => ("rope_parameters", of),
            None => (
                "rope_scaling",
                config.get("rope_scaling").unwrap_or(&Value::Null),
            ),
        };
        let fault = |wanted: &str| refused(path, config, place, wanted);
        let said = scaling
            .get("rope_theta")
            .or_else(|| config.get("rope_theta"));
        let base = match said {
            None | Some(Value::Null) => BASE,
            Some(value) => value
                .as_f64()
                .ok_or_else(|| fault("a number for `rope_theta`"))?,
        };
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        let number = |key: &str| {
            let found = scaling
                .get(key)
                .and_then(Value::as_f64)
                .filter(|n| *n > 0.0);
            found.ok_or_else(|| fault(&format!("a positive number for `{key}`")))
        };
        let context = super::integer(scaling, "original_max_position_embeddings");
        let all = || super::integer(config, "max_position_embeddings");
        let scaling = match kind.and_then(Value::as_str) {
            None if scaling.is_null() || kind.is_none_or(Value::is_null) => Scaling::None,
            Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear {
                factor: number("factor")?,
            },
            Some("yarn") => {
                let is_plain = scaling.as_object().is_some_and(|of| {
                    of.iter()
                        .all(|(key, value)| KNOWN.contains(&key.as_str()) || value.is_null())
                });
                if !is_plain {
                    return Err(fault(
                        "`factor` and `original_max_position_embeddings` alone",
                    ));
                }
                Scaling::Yarn {
                    factor: number("factor")?,
                    context: (context.or_else(all)).ok_or_else(|| fault("a length of texts"))?,
                }
            }
            Some("llama3") if architecture.is_turned => Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                context,
            },
            _ => return Err(fault("`default`, `linear`, `yarn` or, of llama, `llama3`")),
        };
        Ok(Self { base, scaling })
    }

    /// Writes the entries of an architecture.
    pub(super) fn write(&self, name: &str, head: &mut GgufHead) {
        let key = |entry: &str| format!("{name}.rope.{entry}");
        head.f32(&key("freq_base"), self.base as f32);
        match self.scaling {
            Scaling::None | Scaling::Llama3 { .. } => {}
            Scaling::Linear { factor } => {
                head.text(&key("scaling.type"), "linear");
                head.f32(&key("scaling.factor"), factor as f32);
            }
            Scaling::Yarn { factor, context } => {
                head.text(&key("scaling.type"), "yarn");
                head.f32(&key("scaling.factor"), factor as f32);
                head.u32(&key("scaling.original_context_length"), context);
            }
        }
    }
}

/// The divisors of frequencies of Llama 3, one for each pair of a head; `None` for other scalings.
pub(super) fn factors(rope: &Rope, head_width: usize, context: u32) -> Option<Vec<f32>> {
    let Scaling::Llama3 {
        factor,
        low,
        high,
        context: original,
    } = rope.scaling
    else {
        return None;
    };
    let context = f64::from(original.unwrap_or(context));
    let of_pair = |pair: usize| {
        let frequency = rope.base.powf(-((2 * pair) as f64) / head_width as f64);
        let wave = 2.0 * PI / frequency;
        if wave < context / high {
            1.0
        } else if wave > context / low {
            factor
        } else {
            let smooth = (context / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some(
        (0..head_width / 2)
            .map(|pair| of_pair(pair) as f32)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waves_stay_and_long_ones_are_divided() {
        // Llama 3.1: base 500,000, heads of 128, factor 8 between 1 and 4 of 8192 tokens.
        let rope = Rope {
            base: 500_000.0,
            scaling: Scaling::Llama3 {
                factor: 8.0,
                low: 1.0,
                high: 4.0,
                context: Some(8192),
            },
        };
        let factors = factors(&rope, 128, 131_072).expect("scaled");
        assert_eq!((factors.len(), factors[0], factors[63]), (64, 1.0, 8.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
