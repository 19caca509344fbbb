//! Settings that one architecture alone has, or that its programs take for granted.
//!
//! Source: `set_gguf_parameters` of llama.cpp's converter, and what its programs set for each architecture.

use serde_json::Value;

use super::integer;
use super::settings::Settings;
use crate::Result;
use crate::gguf::constants::{
    GEMMA2_EVERY, GEMMA3_EVERY, SMOLLM3_EVERY, largest_of, sees_all, turns_positions,
};
use crate::io::GgufHead;

/// The divisor of the squares of queries that Gemmas have without a setting.
const GEMMA_SCALE: f64 = 256.0;

/// Granite's factors: the setting, the entry.
const GRANITE: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

impl Settings<'_> {
    /// Checks settings that programs take for granted.
    ///
    /// # Errors
    /// [`ExportFault::Setting`](crate::ExportFault::Setting).
    pub(super) fn check_own(&self) -> Result<()> {
        match self.architecture.name {
            "gemma2" => {
                self.check_scale()?;
                self.check_layers(GEMMA2_EVERY)
            }
            "gemma3" => {
                self.check_scale()?;
                if !self.is_absent("attn_logit_softcapping") {
                    return Err(self.refused("attn_logit_softcapping", "null"));
                }
                let every = integer(self.config, "sliding_window_pattern");
                if every.is_some_and(|every| every as usize != GEMMA3_EVERY) {
                    let wanted = GEMMA3_EVERY.to_string();
                    return Err(self.refused("sliding_window_pattern", &wanted));
                }
                self.check_layers(GEMMA3_EVERY)
            }
            "smollm3" => self.check_positions(),
            _ => Ok(()),
        }
    }

    fn is_absent(&self, key: &str) -> bool {
        self.config.get(key).is_none_or(Value::is_null)
    }

    /// Gemmas scale queries by a setting that programs take from the sizes.
    fn check_scale(&self) -> Result<()> {
        let key = "query_pre_attn_scalar";
        let scale = match self.is_absent(key) {
            true => GEMMA_SCALE,
            false => self.number(key)?,
        };
        let n_layers = integer(self.config, "num_hidden_layers");
        let is_largest = n_layers.map(|n| n as usize) == largest_of(self.architecture.name);
        let expected = match is_largest {
            true => self.count("hidden_size")? as usize / self.heads,
            false => self.head_width,
        };
        match scale == expected as f64 {
            true => Ok(()),
            false => Err(self.refused(key, &expected.to_string())),
        }
    }

    /// Each layer number `every` sees the whole text, the others a window.
    fn check_layers(&self, every: usize) -> Result<()> {
        let kinds = self.config.get("layer_types").and_then(Value::as_array);
        let fits = |(layer, kind): (usize, &Value)| {
            let wanted = match sees_all(layer, every) {
                true => "full_attention",
                false => "sliding_attention",
            };
            kind == wanted
        };
        match kinds.is_none_or(|kinds| kinds.iter().enumerate().all(fits)) {
            true => Ok(()),
            false => {
                let wanted = format!("`full_attention` for each layer number {every} alone");
                Err(self.refused("layer_types", &wanted))
            }
        }
    }

    /// Each fourth layer of SmolLM3 does without positions.
    fn check_positions(&self) -> Result<()> {
        let layers = self.config.get("no_rope_layers").and_then(Value::as_array);
        let fits = |(layer, value): (usize, &Value)| {
            value.as_u64() == Some(u64::from(turns_positions(layer)))
        };
        if layers.is_some_and(|layers| !layers.iter().enumerate().all(fits)) {
            let wanted = format!("0 for each layer number {SMOLLM3_EVERY}, and 1 for the others");
            return Err(self.refused("no_rope_layers", &wanted));
        }
        let every = integer(self.config, "no_rope_layer_interval");
        let is_other = every.is_some_and(|every| every as usize != SMOLLM3_EVERY);
        match layers.is_none() && is_other {
            true => Err(self.refused("no_rope_layer_interval", &SMOLLM3_EVERY.to_string())),
            false => Ok(()),
        }
    }

    /// Whether programs know of the window that layers see.
    pub(super) fn has_windows(&self) -> bool {
        ["gemma2", "gemma3"].contains(&self.architecture.name)
    }

    /// Writes the entries that one architecture alone has.
    pub(super) fn write_own(&self, head: &mut GgufHead) -> Result<()> {
        let name = self.architecture.name;
        let key = |entry: &str| format!("{name}.{entry}");
        match name {
            "gemma2" => {
                for setting in ["attn_logit_softcapping", "final_logit_softcapping"] {
                    head.f32(&key(setting), self.number(setting)? as f32);
                }
                let window = self.count("sliding_window")?;
                head.u32(&key("attention.sliding_window"), window);
            }
            "gemma3" => {
                let setting = "final_logit_softcapping";
                if !self.is_absent(setting) {
                    head.f32(&key(setting), self.number(setting)? as f32);
                }
                let window = self.count("sliding_window")?;
                head.u32(&key("attention.sliding_window"), window);
            }
            "phi3" => {
                // Programs tell Phi-4 by a window of none.
                let window = match self.is_absent("sliding_window") {
                    true => 0,
                    false => self.count("sliding_window")?,
                };
                head.u32(&key("attention.sliding_window"), window);
            }
            "granite" => {
                for (setting, entry) in GRANITE {
                    // Without a setting a factor is 1.
                    let factor = match self.is_absent(setting) {
                        true => 1.0,
                        false => self.number(setting)?,
                    };
                    if factor <= 0.0 {
                        return Err(self.refused(setting, "a positive number"));
                    }
                    head.f32(&key(entry), factor as f32);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
