//! config.json as the metadata of a GGUF file.
//!
//! Source: `set_gguf_parameters` of the classes of llama.cpp's `convert_hf_to_gguf.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::architectures::Architecture;
use super::super::names::Parsed;
use super::super::turned::Turned;
use super::rope::{self, Rope};
use super::{architecture_of, integer};
use crate::io::GgufHead;
use crate::{ExportFault, Result};

/// The settings of a model that is written.
pub(super) struct Settings<'c> {
    path: PathBuf,
    config: &'c Value,
    pub(super) architecture: &'static Architecture,
    heads: usize,
    key_heads: usize,
    head_width: usize,
    rope: Rope,
    /// Experts of a mixture; none of a dense model.
    n_experts: usize,
}

/// Settings under which a model computes otherwise than programs that run GGUF files: they must be absent, null, or this.
const EXPECTED: [(&str, &[&str]); 3] = [
    ("partial_rotary_factor", &["1.0", "1"]),
    ("use_bidirectional_attention", &["false"]),
    ("pretraining_tp", &["1"]),
];

impl<'c> Settings<'c> {
    /// Reads and checks the settings of the model at `path`.
    ///
    /// # Errors
    /// [`ExportFault::Architecture`] and [`ExportFault::Setting`].
    pub(super) fn new(path: &Path, config: &'c Value) -> Result<Self> {
        let architecture = architecture_of(path, config)?;
        for (key, allowed) in EXPECTED {
            if let Some(value) = config.get(key).filter(|value| !value.is_null())
                && !allowed.contains(&value.to_string().as_str())
            {
                return Err(refused(path, config, key, allowed[0]));
            }
        }
        let mut settings = Self {
            path: path.into(),
            config,
            architecture,
            heads: 0,
            key_heads: 0,
            head_width: 0,
            rope: Rope::new(path, config, architecture)?,
            n_experts: 0,
        };
        settings.heads = settings.count("num_attention_heads")? as usize;
        settings.key_heads = match config.get("num_key_value_heads") {
            None | Some(Value::Null) => settings.heads,
            Some(_) => settings.count("num_key_value_heads")? as usize,
        };
        settings.head_width = match config.get("head_dim") {
            None | Some(Value::Null) => settings.count("hidden_size")? as usize / settings.heads,
            Some(_) => settings.count("head_dim")? as usize,
        };
        if let Some(key) = settings.experts_key() {
            settings.n_experts = settings.count(key)? as usize;
            settings.check_routing()?;
        }
        settings.check_activation()?;
        settings.check_scale()?;
        Ok(settings)
    }

    fn refused(&self, key: &str, wanted: &str) -> crate::Error {
        refused(&self.path, self.config, key, wanted)
    }

    /// A positive whole number.
    fn count(&self, key: &str) -> Result<u32> {
        let found = integer(self.config, key).filter(|&n| n > 0);
        found.ok_or_else(|| self.refused(key, "a positive whole number"))
    }

    fn number(&self, key: &str) -> Result<f64> {
        let found = self.config.get(key).and_then(Value::as_f64);
        found.ok_or_else(|| self.refused(key, "a number"))
    }

    /// Programs that run GGUF files know the activation by the architecture.
    fn check_activation(&self) -> Result<()> {
        let of_gemma = ["hidden_activation", "hidden_act"];
        let has_other = self.config.get(of_gemma[0]).is_some_and(Value::is_string);
        let (keys, allowed): (&[&str], &[&str]) = match self.architecture.has_norms_plus_one {
            true if has_other => (&of_gemma[..1], &["gelu_pytorch_tanh"]),
            // The first Gemma's `gelu` was meant as, and is computed as, the other.
            true => (&of_gemma[1..], &["gelu_pytorch_tanh", "gelu"]),
            false => (&of_gemma[1..], &["silu"]),
        };
        let said = keys
            .iter()
            .find_map(|key| Some((key, self.config.get(*key)?.as_str()?)));
        match said {
            Some((key, activation)) if !allowed.contains(&activation) => {
                Err(self.refused(key, allowed[0]))
            }
            _ => Ok(()),
        }
    }

    /// Gemma 2 scales queries by a setting that programs take from the sizes.
    fn check_scale(&self) -> Result<()> {
        let Some(scale) = self
            .config
            .get("query_pre_attn_scalar")
            .and_then(Value::as_f64)
        else {
            return Ok(());
        };
        let hidden = self.count("hidden_size")? as usize;
        // The model of 27 billion parameters, known by its layers.
        let is_largest = integer(self.config, "num_hidden_layers") == Some(46);
        let expected = match is_largest {
            true => hidden / self.heads,
            false => self.head_width,
        };
        match scale == expected as f64 {
            true => Ok(()),
            false => Err(self.refused("query_pre_attn_scalar", &expected.to_string())),
        }
    }

    /// The setting with the number of experts.
    fn experts_key(&self) -> Option<&'static str> {
        let is_mixture =
            ["mixtral", "qwen2_moe", "qwen3_moe"].contains(&self.architecture.model_type);
        // Newer programs write the first for all of them.
        let keys = ["num_local_experts", "num_experts"];
        let said = keys.into_iter().find(|key| self.config.get(key).is_some());
        is_mixture.then(|| said.unwrap_or(keys[0]))
    }

    /// Programs that run GGUF files know by the architecture whether the shares of the chosen experts sum to 1.
    fn check_routing(&self) -> Result<()> {
        let sums_to_one = self.config.get("norm_topk_prob") == Some(&Value::Bool(true));
        let expected = match self.architecture.model_type {
            "qwen2_moe" => false,
            "qwen3_moe" => true,
            _ => return Ok(()),
        };
        match sums_to_one == expected {
            true => Ok(()),
            false => Err(self.refused("norm_topk_prob", &expected.to_string())),
        }
    }

    /// Experts of a mixture.
    pub(super) const fn n_experts(&self) -> usize {
        self.n_experts
    }

    /// The names of a tensor of the second expert and those behind it.
    pub(super) fn other_experts(&self, parsed: &Parsed<'_>) -> Vec<String> {
        let others = 1..self.n_experts;
        others.map(|expert| parsed.hugging_face(expert)).collect()
    }

    /// Writes the entries of the architecture.
    ///
    /// # Errors
    /// [`ExportFault::Setting`].
    pub(super) fn write(&self, head: &mut GgufHead) -> Result<()> {
        let name = self.architecture.name;
        let key = |entry: &str| format!("{name}.{entry}");
        for (entry, setting) in [
            ("vocab_size", "vocab_size"),
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
        ] {
            head.u32(&key(entry), self.count(setting)?);
        }
        head.u32(&key("attention.head_count"), self.heads as u32);
        head.u32(&key("attention.head_count_kv"), self.key_heads as u32);
        head.u32(&key("attention.key_length"), self.head_width as u32);
        head.u32(&key("attention.value_length"), self.head_width as u32);
        let epsilon = self.number("rms_norm_eps")? as f32;
        head.f32(&key("attention.layer_norm_rms_epsilon"), epsilon);
        if self.architecture.is_turned {
            head.u32(&key("rope.dimension_count"), self.head_width as u32);
        }
        self.rope.write(name, head);
        if self.n_experts > 0 {
            head.u32(&key("expert_count"), self.n_experts as u32);
            let used = self.count("num_experts_per_tok")?;
            head.u32(&key("expert_used_count"), used);
        }
        if self.architecture.model_type != "mixtral" && self.n_experts > 0 {
            let width = self.count("moe_intermediate_size")?;
            head.u32(&key("expert_feed_forward_length"), width);
        }
        if name == "qwen2moe" {
            let width = self.count("shared_expert_intermediate_size")?;
            head.u32(&key("expert_shared_feed_forward_length"), width);
        }
        if name == "gemma2" {
            for setting in ["attn_logit_softcapping", "final_logit_softcapping"] {
                head.f32(&key(setting), self.number(setting)? as f32);
            }
            let window = self.count("sliding_window")?;
            head.u32(&key("attention.sliding_window"), window);
        }
        Ok(())
    }

    /// What users should know of the output.
    pub(super) fn notes(&self) -> Vec<String> {
        let window = self.config.get("sliding_window").and_then(Value::as_u64);
        let is_used = self.config.get("use_sliding_window") != Some(&Value::Bool(false));
        match window.filter(|_| is_used && self.architecture.name != "gemma2") {
            Some(window) => vec![format!(
                "programs that run GGUF files of `{}` attend to all tokens, not to the last {window} alone",
                self.architecture.name
            )],
            None => Vec::new(),
        }
    }

    /// Whether a tensor is left out: it is tied to another, or computed by programs.
    pub(super) fn leaves_out(&self, key: &str) -> bool {
        let tied = match self.config.get("tie_word_embeddings") {
            Some(Value::Bool(tied)) => *tied,
            // The default of the family.
            _ => self.architecture.has_norms_plus_one,
        };
        tied && key == "lm_head.weight" || key.ends_with("rotary_emb.inv_freq")
    }

    /// The order of rows of a tensor of this module, where it is another one in GGUF.
    ///
    /// # Errors
    /// [`ExportFault::Setting`] for rows that heads do not divide.
    pub(super) fn turned(
        &self,
        path: &Path,
        key: &str,
        module: &str,
        shape: &[usize],
    ) -> Result<Option<Turned>> {
        let (setting, heads) = match module {
            _ if !self.architecture.is_turned => return Ok(None),
            _ if module.ends_with(".q_proj") => ("num_attention_heads", self.heads),
            _ if module.ends_with(".k_proj") => ("num_key_value_heads", self.key_heads),
            _ => return Ok(None),
        };
        let rows = shape.first().copied().unwrap_or(0);
        let turned = Turned::new(rows, heads);
        turned.map(Some).ok_or_else(|| {
            refused(
                path,
                self.config,
                setting,
                &format!("heads that divide the {rows} rows of `{key}` into pairs"),
            )
        })
    }

    /// Factors of the frequencies of rotary positions, where the model has them.
    pub(super) fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        let context = self.count("max_position_embeddings")?;
        Ok(rope::factors(&self.rope, self.head_width, context))
    }
}

/// The fault of a setting.
pub(super) fn refused(path: &Path, config: &Value, key: &str, wanted: &str) -> crate::Error {
    let found = config
        .get(key)
        .map_or_else(|| "nothing".into(), Value::to_string);
    ExportFault::Setting {
        path: path.into(),
        key: key.to_owned(),
        found,
        wanted: wanted.to_owned(),
    }
    .into()
}
