//! The quantization of a model, as its config.json describes it.

use serde_json::Value;

use crate::{Checkpoint, Result, model_config};

/// The entries of `quantization_config` that are read.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// `quant_method`: `fp8`, `gptq`, `compressed-tensors` …
    pub(super) method: Option<String>,
    /// Rows and columns that share a scale.
    pub(super) blocks: Vec<[usize; 2]>,
    /// The number added to GPTQ's zero points.
    pub(super) zero_offset: u32,
    /// The reason why scales and codes do not give the weights, in words.
    pub(super) obstacle: Option<String>,
}

/// Keys under which block sizes are.
const BLOCKS: [&str; 2] = ["weight_block_size", "block_structure"];

impl Config {
    /// That of the model that a checkpoint belongs to.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = model_config::of(checkpoint)?;
        Ok(Self::read(&config.unwrap_or_default()))
    }

    fn read(config: &Value) -> Self {
        let Some(own) = said_by(config) else {
            return Self {
                zero_offset: 1,
                ..Self::default()
            };
        };
        let text = |key: &str| own.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut blocks = Vec::new();
        find_blocks(own, &mut blocks);
        let model_type = config.get("model_type").and_then(Value::as_str);
        let method = text("quant_method");
        let is_turned = matches!(model_type, Some("gpt2" | "openai-gpt"));
        let is_gptq = method.as_deref() == Some("gptq");
        let version = text("version").map(|version| version.to_lowercase());
        let obstacle = match own.get("transform_config") {
            Some(Value::Object(transforms)) if !transforms.is_empty() => {
                Some("its weights are rotated (`transform_config`)".to_owned())
            }
            _ if is_turned && is_gptq => {
                Some("its layers keep weights as (inputs, outputs)".to_owned())
            }
            _ => match version.as_deref() {
                Some(version @ ("gemv" | "gemv_fast" | "marlin" | "exllama" | "ipex")) => {
                    Some(format!("its words are ordered for {version}"))
                }
                _ => None,
            },
        };
        Self {
            zero_offset: match text("checkpoint_format").as_deref() {
                Some("gptq_v2") => 0,
                _ => 1,
            },
            method,
            blocks,
            obstacle,
        }
    }
}

/// The settings of quantization, of the model or of a part of it.
pub(super) fn said_by(config: &Value) -> Option<&Value> {
    let parts = config.as_object().into_iter().flatten();
    let nested = parts.filter(|(key, _)| key.ends_with("_config"));
    let own = std::iter::once(config)
        .chain(nested.map(|(_, part)| part))
        .find_map(|part| {
            let names = ["quantization_config", "compression_config"];
            names.into_iter().find_map(|name| part.get(name))
        });
    own.filter(|own| own.is_object())
}

/// Block sizes anywhere in the settings: compressed-tensors has them by groups of layers.
fn find_blocks(value: &Value, found: &mut Vec<[usize; 2]>) {
    let Some(object) = value.as_object() else {
        return;
    };
    for (key, value) in object {
        if BLOCKS.contains(&key.as_str())
            && let Some([high, wide]) = value.as_array().map(Vec::as_slice)
            && let (Some(high), Some(wide)) = (high.as_u64(), wide.as_u64())
        {
            found.push([high as usize, wide as usize]);
        } else {
            // A stranger's file nests no deeper than its parser allows.
            find_blocks(value, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Config;

    #[test]
    fn settings_are_found_at_the_top_or_in_a_part() {
        let fp8 =
            json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}});
        let config = Config::read(&fp8);
        assert_eq!(config.method.as_deref(), Some("fp8"));
        assert_eq!(config.blocks, [[64, 32]]);
        let part = json!({"text_config": {"quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"block_structure": [128, 64]}}},
            "transform_config": {}
        }}});
        let config = Config::read(&part);
        assert_eq!(config.blocks, [[128, 64]]);
        assert!(config.obstacle.is_none());
        let second = json!({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}});
        assert_eq!(Config::read(&second).zero_offset, 0);
        assert_eq!(Config::read(&json!({})).zero_offset, 1);
        let gemv = json!({"quantization_config": {"quant_method": "awq", "version": "gemv"}});
        assert!(Config::read(&gemv).obstacle.is_some());
    }
}
