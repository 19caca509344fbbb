//! Rotary positions of a language model as config.json has them.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::facts::Facts;
use crate::Result;
use crate::gguf::export::{Bands, attention_factor};

/// The base of frequencies without an entry, and that of layers of Gemma 3 that see a window.
const BASE: f64 = 10_000.0;

/// The bands of Llama 3, which are the same in all of its models, and the tokens that these were trained on first.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const CONTEXT: f64 = 8192.0;

/// How far apart, as a share, numbers may be that are rounded to f32.
const ROUNDED: f64 = 1e-6;

/// Entries that mean something beside a type of scaling alone.
const OF_TYPES: [&str; 2] = [
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
];

/// Entries that say more than config.json does.
const UNSAID: [&str; 7] = [
    "rope.scale_linear",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.dimension_sections",
];

/// Adds the settings of rotary positions of heads of `head_width` to a configuration.
///
/// # Errors
/// [`GgufFault::Unsaid`](crate::GgufFault::Unsaid) for scalings that config.json does not have.
pub(super) fn add(
    facts: &Facts<'_>,
    head_width: usize,
    config: &mut Map<String, Value>,
) -> Result<()> {
    if let Some(entry) = UNSAID.iter().find(|entry| facts.has(entry)) {
        return Err(facts.unsaid(entry, "is there".into()));
    }
    let is_phi = facts.architecture.model_type == "phi3";
    let width = facts.count_or("rope.dimension_count", head_width)?;
    if width > head_width || width != head_width && !is_phi {
        let found = format!("is {width}, and heads have {head_width} elements");
        return Err(facts.unsaid("rope.dimension_count", found));
    }
    let base = facts.number("rope.freq_base")?.unwrap_or(BASE);
    config.insert("rope_theta".into(), json!(base));
    if facts.architecture.name == "gemma3" {
        let base = facts.number("rope.freq_base_swa")?.unwrap_or(BASE);
        config.insert("rope_local_base_freq".into(), json!(base));
    }
    let scaling = match is_phi {
        true => {
            let share = width as f64 / head_width as f64;
            config.insert("partial_rotary_factor".into(), json!(share));
            of_phi(facts, width, config)?
        }
        false => match facts.tensor("rope_freqs.weight", head_width / 2)? {
            Some(factors) => Some(of_factors(facts, base, head_width, &factors)?),
            None => of_entries(facts)?,
        },
    };
    config.insert("rope_scaling".into(), json!(scaling));
    Ok(())
}

/// A scaling that the metadata say.
fn of_entries(facts: &Facts<'_>) -> Result<Option<Value>> {
    if facts
        .number("rope.scaling.attn_factor")?
        .is_some_and(|factor| factor != 1.0)
    {
        return Err(facts.unsaid("rope.scaling.attn_factor", "is not 1".into()));
    }
    Ok(match facts.text("rope.scaling.type")? {
        None | Some("none") => {
            if let Some(entry) = OF_TYPES.iter().find(|entry| facts.has(entry)) {
                return Err(facts.unsaid(entry, "is there without a type of scaling".into()));
            }
            None
        }
        Some("linear") => Some(json!({
            "rope_type": "linear",
            "factor": facts.required("rope.scaling.factor")?,
        })),
        Some("yarn") => Some(json!({
            "rope_type": "yarn",
            "factor": facts.required("rope.scaling.factor")?,
            "original_max_position_embeddings": facts.count("rope.scaling.original_context_length")?,
        })),
        Some(kind) => return Err(facts.unsaid("rope.scaling.type", format!("is `{kind}`"))),
    })
}

/// The scaling of Phi-3: divisors of the frequencies in long texts and in short ones.
fn of_phi(
    facts: &Facts<'_>,
    width: usize,
    config: &mut Map<String, Value>,
) -> Result<Option<Value>> {
    let longest = facts.count("context_length")?;
    let context = facts.count_or("rope.scaling.original_context_length", longest)?;
    config.insert("original_max_position_embeddings".into(), json!(context));
    let name = |length: &str| format!("rope_factors_{length}.weight");
    let factors = |length: &str| facts.tensor(&name(length), width / 2);
    match (factors("long")?, factors("short")?) {
        (None, None) => Ok(None),
        (Some(long), Some(short)) => {
            let mut scaling = json!({
                "rope_type": "longrope",
                "long_factor": long,
                "short_factor": short,
            });
            if let Some(factor) = facts.number("rope.scaling.attn_factor")? {
                // Numbers that transformers computes are left to it.
                if !is_near(factor, attention_factor(longest as f64, context as f64)) {
                    scaling["attention_factor"] = json!(factor);
                }
            }
            Ok(Some(scaling))
        }
        (long, _) => {
            let missing = if long.is_some() { "short" } else { "long" };
            Err(facts.unsaid_of(&name(missing), "is missing beside the other".into()))
        }
    }
}

fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= ROUNDED * other.abs()
}

/// The scaling of Llama 3 of which these are the divisors. The largest is the factor; one of those between tells the
/// tokens that the model was trained on first.
fn of_factors(facts: &Facts<'_>, base: f64, head_width: usize, factors: &[f32]) -> Result<Value> {
    let factor = factors
        .iter()
        .fold(1.0f32, |most, &factor| most.max(factor));
    let factor = f64::from(factor);
    let is_between = |&(_, own): &(usize, f64)| own > 1.0 && own < factor;
    let mut numbered = factors.iter().map(|&own| f64::from(own)).enumerate();
    let context = numbered.find(is_between).map(|(pair, own)| {
        let wave = 2.0 * PI * base.powf((2 * pair) as f64 / head_width as f64);
        let smooth = (1.0 / own - 1.0 / factor) / (1.0 - 1.0 / factor);
        (wave * (smooth * (HIGH - LOW) + LOW)).round()
    });
    let bands = Bands {
        factor,
        low: LOW,
        high: HIGH,
        context: context.unwrap_or(CONTEXT),
    };
    let again = bands.factors(base, head_width);
    let mut pairs = again.iter().zip(factors);
    if !pairs.all(|(&one, &other)| is_near(f64::from(one), f64::from(other))) {
        let found = "has other divisors than a scaling of Llama 3 gives".to_owned();
        return Err(facts.unsaid_of("rope_freqs.weight", found));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": bands.context as u64,
    }))
}
