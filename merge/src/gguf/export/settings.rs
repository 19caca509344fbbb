//! config.json as the metadata of a GGUF file.
//!
//! Source: `set_gguf_parameters` of the classes of llama.cpp's `convert_hf_to_gguf.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::architectures::Architecture;
use super::super::names::Parsed;
use super::super::turned::Turned;
use super::rope::Rope;
use super::view::Made;
use super::{architecture_of, integer};
use crate::io::GgufHead;
use crate::{ExportFault, Result};

/// The settings of a model that is written.
pub(super) struct Settings<'c> {
    path: PathBuf,
    pub(super) config: &'c Value,
    pub(super) architecture: &'static Architecture,
    pub(super) heads: usize,
    key_heads: usize,
    pub(super) head_width: usize,
    rope: Rope,
    /// Experts of a mixture; none of a dense model.
    n_experts: usize,
}

/// Settings under which a model computes otherwise than programs that run GGUF files: they must be absent, null, or this.
const EXPECTED: [(&str, &[&str]); 2] = [
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
        if architecture.name == "clip" {
            return Err(ExportFault::Architecture {
                path: path.into(),
                model_type: architecture.model_type.to_owned(),
            }
            .into());
        }
        for (key, allowed) in EXPECTED {
            if let Some(value) = config.get(key).filter(|value| !value.is_null())
                && !allowed.contains(&value.to_string().as_str())
            {
                return Err(refused(path, config, key, allowed[0]));
            }
        }
        let count = |key: &str| count(path, config, key).map(|n| n as usize);
        let or = |key: &str, default: &dyn Fn() -> Result<usize>| match config.get(key) {
            None | Some(Value::Null) => default(),
            Some(_) => count(key),
        };
        let heads = count("num_attention_heads")?;
        let head_width = or("head_dim", &|| Ok(count("hidden_size")? / heads))?;
        let mut settings = Self {
            path: path.into(),
            config,
            architecture,
            heads,
            key_heads: or("num_key_value_heads", &|| Ok(heads))?,
            head_width,
            rope: Rope::new(path, config, architecture, head_width)?,
            n_experts: 0,
        };
        if let Some(key) = settings.experts_key() {
            settings.n_experts = settings.count(key)? as usize;
            settings.check_routing()?;
        }
        settings.check_activation()?;
        settings.check_own()?;
        Ok(settings)
    }

    pub(super) fn refused(&self, key: &str, wanted: &str) -> crate::Error {
        refused(&self.path, self.config, key, wanted)
    }

    /// A positive whole number.
    pub(super) fn count(&self, key: &str) -> Result<u32> {
        count(&self.path, self.config, key)
    }

    pub(super) fn number(&self, key: &str) -> Result<f64> {
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
        if self.architecture.is_turned || name == "phi3" {
            let width = (self.rope.share * self.head_width as f64) as u32;
            head.u32(&key("rope.dimension_count"), width);
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
        self.write_own(head)
    }

    /// Notes for users on the output.
    pub(super) fn notes(&self) -> Vec<String> {
        let window = self.config.get("sliding_window").and_then(Value::as_u64);
        let is_used = self.config.get("use_sliding_window") != Some(&Value::Bool(false));
        match window.filter(|_| is_used && !self.has_windows()) {
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
            _ => self.architecture.is_tied,
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

    /// The tensors that the model has only in its settings.
    pub(super) fn made(&self) -> Result<Vec<Made>> {
        let context = self.count("max_position_embeddings")?;
        Ok(self.rope.tensors(self.head_width, context))
    }
}

/// A positive whole number.
fn count(path: &Path, config: &Value, key: &str) -> Result<u32> {
    let found = integer(config, key).filter(|&n| n > 0);
    found.ok_or_else(|| refused(path, config, key, "a positive whole number"))
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
