//! config.json and preprocessor_config.json of a CLIP with both towers.

use super::facts::Facts;
use crate::beside::Beside;
use crate::convert::{ClipTarget, clip};
use crate::gguf::value;
use crate::io::PlainValue;
use crate::layouts::{self, ClipActivation, ClipFacts, ModelRecord, PooledText, RecordFamily};
use crate::{Checkpoint, Result};

/// The files beside the weights.
pub(super) fn beside(source: &Checkpoint, facts: &Facts<'_>) -> Result<Beside> {
    let layout = layouts::detect(source)?;
    let activation = match facts.bool("use_gelu")? {
        Some(true) => ClipActivation::Gelu,
        Some(false) | None => ClipActivation::QuickGelu,
    };
    let end = "tokenizer.ggml.eos_token_id";
    let pooled = match value(facts.info(), end) {
        None => PooledText::Largest,
        Some(PlainValue::Integer(id)) => PooledText::Token(
            u32::try_from(*id).map_err(|_| facts.wrong(end, "is no number of a token"))?,
        ),
        Some(_) => return Err(facts.wrong(end, "is no number of a token")),
    };
    let record = ModelRecord {
        family: Some(RecordFamily::Clip),
        image_heads: Some(facts.count("vision.attention.head_count")?),
        text_heads: Some(facts.count("text.attention.head_count")?),
        image_mean: Some(colors(facts, "vision.image_mean")?),
        image_deviation: Some(colors(facts, "vision.image_std")?),
        clip: Some(ClipFacts {
            image_activation: Some(activation),
            text_activation: Some(activation),
            image_epsilon: Some(facts.required("vision.attention.layer_norm_epsilon")?),
            text_epsilon: Some(facts.required("text.attention.layer_norm_epsilon")?),
            is_causal: Some(true),
            pooled: Some(pooled),
            ..ClipFacts::default()
        }),
        ..ModelRecord::default()
    };
    clip::beside(
        source,
        layout.dimensions(),
        &record,
        ClipTarget::HuggingFace,
    )
}

/// Three numbers, which the header shows as a list.
fn colors(facts: &Facts<'_>, entry: &str) -> Result<[f32; 3]> {
    let found = facts.text(entry)?;
    let colors = found.and_then(|text| serde_json::from_str(text).ok());
    let fault = || facts.wrong(&format!("clip.{entry}"), "has no three numbers");
    colors.ok_or_else(fault)
}
