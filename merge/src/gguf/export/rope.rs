//! The settings of rotary positions.
//!
//! Source: `_compute_llama3_parameters` and its neighbors in transformers' `modeling_rope_utils.py`; llama.cpp's
//! `generate_extra_tensors` of Llama and Phi-3.

use std::f64::consts::PI;
use std::path::Path;

use serde_json::Value;

use super::super::architectures::Architecture;
use super::settings::refused;
use super::view::Made;
use crate::Result;
use crate::io::GgufHead;

/// The base of frequencies in layers that see a window of the text, of Gemma 3 without a setting.
const LOCAL_BASE: f64 = 10_000.0;

/// Tokens that Phi-3 was trained on without a setting.
const PHI_CONTEXT: u32 = 4096;

/// Settings that say nothing about numbers, or that every kind of scaling has.
const KNOWN: [&str; 6] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

/// Rotary positions: the base of their frequencies, and how these are scaled.
pub(super) struct Rope {
    base: f64,
    /// The base in layers that see a window of the text, where it is another one.
    local_base: Option<f64>,
    /// The share of a head that is rotated.
    pub(super) share: f64,
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
    /// A divisor of each frequency, in long texts and in short ones.
    Long {
        long: Vec<f32>,
        short: Vec<f32>,
        context: u32,
        /// The factor of queries and keys.
        attention: f64,
    },
}

/// Where config.json has the settings.
struct Said<'c> {
    path: &'c Path,
    config: &'c Value,
    /// The entry, for messages.
    place: &'static str,
    /// The settings in it.
    scaling: &'c Value,
}

impl Said<'_> {
    fn fault(&self, wanted: &str) -> crate::Error {
        refused(self.path, self.config, self.place, wanted)
    }

    /// A positive number.
    fn number(&self, key: &str) -> Result<f64> {
        let found = self.scaling.get(key).and_then(Value::as_f64);
        let found = found.filter(|n| *n > 0.0);
        found.ok_or_else(|| self.fault(&format!("a positive number for `{key}`")))
    }

    /// Divisors of the frequencies, one for each pair of a head.
    fn divisors(&self, key: &str, n_pairs: usize) -> Result<Vec<f32>> {
        let values = self.scaling.get(key).and_then(Value::as_array);
        let numbers: Option<Vec<f32>> = values
            .into_iter()
            .flatten()
            .map(|value| value.as_f64().filter(|n| *n > 0.0).map(|n| n as f32))
            .collect();
        let fits = |numbers: &Vec<f32>| numbers.len() == n_pairs;
        numbers
            .filter(fits)
            .ok_or_else(|| self.fault(&format!("{n_pairs} positive numbers for `{key}`")))
    }
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` of newer configurations, of a model with heads of
    /// `head_width`.
    pub(super) fn new(
        path: &Path,
        config: &Value,
        architecture: &Architecture,
        head_width: usize,
    ) -> Result<Self> {
        let parameters = config
            .get("rope_parameters")
            .filter(|value| !value.is_null());
        let (place, all) = match parameters {
            Some(of) => ("rope_parameters", of),
            None => (
                "rope_scaling",
                config.get("rope_scaling").unwrap_or(&Value::Null),
            ),
        };
        let has_windows = architecture.model_type == "gemma3_text";
        let by_kind = all.get("full_attention").filter(|_| has_windows);
        let said = Said {
            path,
            config,
            place,
            scaling: by_kind.unwrap_or(all),
        };
        let base_in = |of: &Value, key: &str, default: f64| match of
            .get("rope_theta")
            .or_else(|| config.get(key))
        {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|base| *base > 0.0)
                .ok_or_else(|| said.fault(&format!("a positive number for `{key}`"))),
        };
        let base = base_in(said.scaling, "rope_theta", architecture.rope_base)?;
        let local_base = match has_windows {
            false => None,
            true => {
                let local = all.get("sliding_attention").unwrap_or(&Value::Null);
                let kind = local.get("rope_type").and_then(Value::as_str);
                if kind.is_some_and(|kind| kind != "default") {
                    return Err(said.fault("`default` for `sliding_attention`"));
                }
                Some(base_in(local, "rope_local_base_freq", LOCAL_BASE)?)
            }
        };
        let share = said.scaling.get("partial_rotary_factor");
        let share = share.or_else(|| config.get("partial_rotary_factor"));
        let share = match share {
            None | Some(Value::Null) => 1.0,
            Some(value) => {
                let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
                let is_any = architecture.model_type == "phi3";
                let share = share.filter(|share| is_any || *share == 1.0);
                share.ok_or_else(|| {
                    let wanted = match is_any {
                        true => "a share of a head for `partial_rotary_factor`",
                        false => "1.0 for `partial_rotary_factor`",
                    };
                    said.fault(wanted)
                })?
            }
        };
        let n_pairs = (share * head_width as f64) as usize / 2;
        let scaling = scaling(&said, architecture, n_pairs)?;
        Ok(Self {
            base,
            local_base,
            share,
            scaling,
        })
    }

    /// Writes the entries of an architecture.
    pub(super) fn write(&self, name: &str, head: &mut GgufHead) {
        let key = |entry: &str| format!("{name}.rope.{entry}");
        head.f32(&key("freq_base"), self.base as f32);
        if let Some(base) = self.local_base {
            head.f32(&key("freq_base_swa"), base as f32);
        }
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
            Scaling::Long {
                context, attention, ..
            } => {
                head.u32(&key("scaling.original_context_length"), context);
                head.f32(&key("scaling.attn_factor"), attention as f32);
            }
        }
    }

    /// The tensors of divisors of frequencies, of a model of `context` tokens with heads of `head_width`.
    pub(super) fn tensors(&self, head_width: usize, context: u32) -> Vec<Made> {
        let made = |name: &str, values: Vec<f32>| Made {
            name: name.into(),
            values,
        };
        match &self.scaling {
            Scaling::Llama3 {
                factor,
                low,
                high,
                context: original,
            } => {
                let bands = Bands {
                    factor: *factor,
                    low: *low,
                    high: *high,
                    context: f64::from(original.unwrap_or(context)),
                };
                let values = bands.factors(self.base, head_width);
                vec![made("rope_freqs.weight", values)]
            }
            Scaling::Long { long, short, .. } => vec![
                made("rope_factors_long.weight", long.clone()),
                made("rope_factors_short.weight", short.clone()),
            ],
            Scaling::None | Scaling::Linear { .. } | Scaling::Yarn { .. } => Vec::new(),
        }
    }
}

/// How frequencies are scaled.
fn scaling(said: &Said<'_>, architecture: &Architecture, n_pairs: usize) -> Result<Scaling> {
    let (config, scaling) = (said.config, said.scaling);
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
    let all = || super::integer(config, "max_position_embeddings");
    let context = super::integer(scaling, "original_max_position_embeddings");
    if architecture.model_type == "phi3" {
        let own = || super::integer(config, "original_max_position_embeddings");
        let context = context.or_else(own).unwrap_or(PHI_CONTEXT);
        return match kind.and_then(Value::as_str) {
            None if scaling.is_null() || kind.is_none_or(Value::is_null) => Ok(Scaling::None),
            Some("default") => Ok(Scaling::None),
            // The older names stand for the same.
            Some("longrope" | "su" | "yarn") => {
                let longest = all().ok_or_else(|| said.fault("a length of texts"))?;
                let attention = match scaling.get("attention_factor") {
                    None | Some(Value::Null) => {
                        attention_factor(f64::from(longest), f64::from(context))
                    }
                    Some(_) => said.number("attention_factor")?,
                };
                Ok(Scaling::Long {
                    long: said.divisors("long_factor", n_pairs)?,
                    short: said.divisors("short_factor", n_pairs)?,
                    context,
                    attention,
                })
            }
            _ => Err(said.fault("`default` or `longrope`")),
        };
    }
    Ok(match kind.and_then(Value::as_str) {
        None if scaling.is_null() || kind.is_none_or(Value::is_null) => Scaling::None,
        Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear {
            factor: said.number("factor")?,
        },
        Some("yarn") => {
            let is_plain = scaling.as_object().is_some_and(|of| {
                of.iter()
                    .all(|(key, value)| KNOWN.contains(&key.as_str()) || value.is_null())
            });
            if !is_plain {
                return Err(said.fault("`factor` and `original_max_position_embeddings` alone"));
            }
            Scaling::Yarn {
                factor: said.number("factor")?,
                context: (context.or_else(all)).ok_or_else(|| said.fault("a length of texts"))?,
            }
        }
        Some("llama3") if architecture.is_turned => Scaling::Llama3 {
            factor: said.number("factor")?,
            low: said.number("low_freq_factor")?,
            high: said.number("high_freq_factor")?,
            context,
        },
        _ => return Err(said.fault("`default`, `linear`, `yarn` or, of llama, `llama3`")),
    })
}

/// The factor on attention in a Phi-3 for texts of `longest` tokens that was trained on `context` tokens first:
/// `√(1 + ln(longest / context) / ln(context))`, or 1 if `longest` is no more. Transformers computes the same for
/// `longrope` without `attention_factor`.
pub(in crate::gguf) fn attention_factor(longest: f64, context: f64) -> f64 {
    let context = context.max(2.0);
    let stretch = longest / context;
    match stretch > 1.0 {
        true => (1.0 + stretch.ln() / context.ln()).sqrt(),
        false => 1.0,
    }
}

/// The bands of waves of Llama 3: short ones stay, long ones are divided by a factor, those between by less.
#[derive(Clone, Copy, Debug)]
pub(in crate::gguf) struct Bands {
    pub(in crate::gguf) factor: f64,
    pub(in crate::gguf) low: f64,
    pub(in crate::gguf) high: f64,
    pub(in crate::gguf) context: f64,
}

impl Bands {
    /// The divisors of frequencies of a base, one for each pair of a head.
    pub(in crate::gguf) fn factors(self, base: f64, head_width: usize) -> Vec<f32> {
        let Self {
            factor,
            low,
            high,
            context,
        } = self;
        let of_pair = |pair: usize| {
            let frequency = base.powf(-((2 * pair) as f64) / head_width as f64);
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
        (0..head_width / 2)
            .map(|pair| of_pair(pair) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waves_stay_and_long_ones_are_divided() {
        // Llama 3.1: base 500,000, heads of 128, factor 8 between 1 and 4 of 8192 tokens.
        let bands = Bands {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            context: 8192.0,
        };
        let factors = bands.factors(500_000.0, 128);
        assert_eq!((factors.len(), factors[0], factors[63]), (64, 1.0, 8.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
    }

    #[test]
    fn attention_grows_with_the_logarithm_of_the_stretch() {
        // Phi-3 mini 128k: ln(2¹⁷ / 2¹²) / ln(2¹²) = 5 / 12.
        let found = attention_factor(131_072.0, 4096.0);
        assert!((found - (17.0f64 / 12.0).sqrt()).abs() < 1e-12, "{found}");
        assert_eq!(attention_factor(4096.0, 4096.0), 1.0);
    }
}
