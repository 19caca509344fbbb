//! config.json of a language model.
//!
//! Source: the configuration classes of transformers, whose settings without an entry in GGUF files are those of the
//! programs that run these.

use serde_json::{Map, Value, json};

use super::bias::has_biases;
use super::facts::Facts;
use super::positions;
use crate::gguf::constants::{GEMMA3_EVERY, SMOLLM3_EVERY, largest_of, turns_positions};
use crate::{Checkpoint, Result};

const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];
const GATED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The values that programs for Gemma 2 take without an entry.
const GEMMA2_WINDOW: usize = 4096;
const GEMMA2_CAPS: [(&str, f64); 2] = [
    ("attn_logit_softcapping", 50.0),
    ("final_logit_softcapping", 30.0),
];

/// The class of a model in transformers.
fn class_of(model_type: &str) -> &'static str {
    match model_type {
        "mixtral" => "MixtralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "qwen2_moe" => "Qwen2MoeForCausalLM",
        "qwen3_moe" => "Qwen3MoeForCausalLM",
        "phi3" => "Phi3ForCausalLM",
        "gemma" => "GemmaForCausalLM",
        "gemma2" => "Gemma2ForCausalLM",
        "gemma3_text" => "Gemma3ForCausalLM",
        "smollm3" => "SmolLM3ForCausalLM",
        "granite" => "GraniteForCausalLM",
        _ => "LlamaForCausalLM",
    }
}

/// The configuration, except for its tokens and its dtype.
///
/// # Errors
/// [`GgufFault::Fact`](crate::GgufFault::Fact) and [`GgufFault::Unsaid`](crate::GgufFault::Unsaid).
pub(super) fn of(source: &Checkpoint, facts: &Facts<'_>) -> Result<Map<String, Value>> {
    let model_type = facts.architecture.model_type;
    let embeddings = source.require("model.embed_tokens.weight")?;
    let (hidden, heads) = (
        facts.count("embedding_length")?,
        facts.count("attention.head_count")?,
    );
    let n_layers = facts.count("block_count")?;
    let n_tensors = source.tensors().count();
    if n_layers > n_tensors {
        let found = format!("is {n_layers}, and the file has {n_tensors} tensors");
        return Err(facts.wrong(&facts.key("block_count"), &found));
    }
    let head_width = facts.count_or("attention.key_length", hidden / heads)?;
    let of_values = facts.count_or("attention.value_length", head_width)?;
    if of_values != head_width {
        let found = format!("is {of_values}, and keys have {head_width} elements");
        return Err(facts.unsaid("attention.value_length", found));
    }
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("architectures", json!([class_of(model_type)]));
    set("model_type", json!(model_type));
    set("vocab_size", json!(embeddings.shape.first()));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(n_layers));
    set("num_attention_heads", json!(heads));
    let key_heads = facts.count_or("attention.head_count_kv", heads)?;
    set("num_key_value_heads", json!(key_heads));
    set("head_dim", json!(head_width));
    set(
        "intermediate_size",
        json!(facts.count("feed_forward_length")?),
    );
    set(
        "max_position_embeddings",
        json!(facts.count("context_length")?),
    );
    let epsilon = facts.required("attention.layer_norm_rms_epsilon")?;
    set("rms_norm_eps", json!(epsilon));
    let activation = match facts.architecture.has_norms_plus_one {
        true => "gelu_pytorch_tanh",
        false => "silu",
    };
    set("hidden_act", json!(activation));
    set(
        "tie_word_embeddings",
        json!(source.get("lm_head.weight").is_none()),
    );
    if [
        "llama",
        "granite",
        "smollm3",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
    ]
    .contains(&model_type)
    {
        set(
            "attention_bias",
            json!(has_biases(source, "self_attn", &ATTENTION)?),
        );
    }
    if ["llama", "granite", "smollm3"].contains(&model_type) {
        set("mlp_bias", json!(has_biases(source, "mlp", &GATED)?));
    }
    if model_type == "phi3" && head_width * heads != hidden {
        let found = format!("is {head_width}, and {heads} heads share {hidden} elements");
        return Err(facts.unsaid("attention.key_length", found));
    }
    positions::add(facts, head_width, &mut config)?;
    add_experts(facts, &mut config)?;
    add_own(facts, (hidden / heads, head_width), n_layers, &mut config)?;
    Ok(config)
}

/// Adds the settings of a mixture.
fn add_experts(facts: &Facts<'_>, config: &mut Map<String, Value>) -> Result<()> {
    let model_type = facts.architecture.model_type;
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    let key = match model_type {
        "mixtral" => "num_local_experts",
        "qwen2_moe" | "qwen3_moe" => "num_experts",
        _ => return Ok(()),
    };
    set(key, json!(facts.count("expert_count")?));
    set(
        "num_experts_per_tok",
        json!(facts.count("expert_used_count")?),
    );
    if model_type == "mixtral" {
        set("sliding_window", Value::Null);
        return Ok(());
    }
    let width = facts.count("expert_feed_forward_length")?;
    set("moe_intermediate_size", json!(width));
    set("norm_topk_prob", json!(model_type == "qwen3_moe"));
    set("decoder_sparse_step", json!(1));
    set("mlp_only_layers", json!([]));
    if model_type == "qwen2_moe" {
        let width = facts.count("expert_shared_feed_forward_length")?;
        set("shared_expert_intermediate_size", json!(width));
    }
    Ok(())
}

/// Adds the settings that one architecture alone has, of a model with `widths` elements for each head: of the whole width,
/// and of queries.
fn add_own(
    facts: &Facts<'_>,
    widths: (usize, usize),
    n_layers: usize,
    config: &mut Map<String, Value>,
) -> Result<()> {
    let name = facts.architecture.name;
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    if facts.architecture.has_norms_plus_one {
        set("hidden_activation", json!("gelu_pytorch_tanh"));
    }
    let scale = match largest_of(name) == Some(n_layers) {
        true => widths.0,
        false => widths.1,
    };
    match name {
        "gemma2" => {
            set("query_pre_attn_scalar", json!(scale));
            for (key, default) in GEMMA2_CAPS {
                set(key, json!(facts.number(key)?.unwrap_or(default)));
            }
            let window = facts.count_or("attention.sliding_window", GEMMA2_WINDOW)?;
            set("sliding_window", json!(window));
        }
        "gemma3" => {
            set("query_pre_attn_scalar", json!(scale));
            set(
                "sliding_window",
                json!(facts.count("attention.sliding_window")?),
            );
            set("sliding_window_pattern", json!(GEMMA3_EVERY));
            let cap = "final_logit_softcapping";
            set(cap, json!(facts.number(cap)?));
            set("attn_logit_softcapping", Value::Null);
        }
        "phi3" => {
            let window = facts.number("attention.sliding_window")?;
            let window = window
                .filter(|window| *window > 0.0)
                .map(|window| window as u64);
            set("sliding_window", json!(window));
        }
        "smollm3" => {
            let layers: Vec<u8> = (0..n_layers)
                .map(|layer| turns_positions(layer).into())
                .collect();
            set("no_rope_layers", json!(layers));
            set("no_rope_layer_interval", json!(SMOLLM3_EVERY));
            set("use_sliding_window", json!(false));
            set("sliding_window", Value::Null);
        }
        "granite" => {
            let of_width = || (widths.1 as f64).sqrt().recip();
            let attention = facts.number("attention.scale")?.unwrap_or_else(of_width);
            set("attention_multiplier", json!(attention));
            for (key, entry) in [
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
            ] {
                set(key, json!(facts.number(entry)?.unwrap_or(1.0)));
            }
            set("logits_scaling", json!(facts.required("logit_scale")?));
        }
        _ => {}
    }
    Ok(())
}
