//! The configuration that transformers reads of a model of Megatron.

use serde_json::json;

use super::Heads;
use super::arguments::Arguments;
use crate::beside::Companion;
use crate::beside::config::torch_name;
use crate::{Checkpoint, DType, Result};

/// Arguments that must be as here for the model to be one that transformers has; `None` for one that must not be set.
const FORMS: [(&str, Option<&str>, &str); 14] = [
    (
        "position_embedding_type",
        Some("rope"),
        "rope: transformers' models here have rotary positions",
    ),
    (
        "swiglu",
        Some("true"),
        "True: transformers' models here have gated networks with SiLU",
    ),
    (
        "normalization",
        Some("RMSNorm"),
        "RMSNorm, which transformers' models here have",
    ),
    (
        "rotary_percent",
        Some("1"),
        "1: all of a head is turned by its position",
    ),
    (
        "rotary_interleaved",
        Some("false"),
        "False: pairs that are turned are of both halves of a head",
    ),
    (
        "apply_layernorm_1p",
        Some("false"),
        "False: norms are not around one",
    ),
    (
        "apply_residual_connection_post_layernorm",
        Some("false"),
        "False",
    ),
    (
        "multi_latent_attention",
        Some("false"),
        "False: queries, keys and values are not compressed",
    ),
    (
        "attention_output_gate",
        Some("false"),
        "False: attention has no gate",
    ),
    ("squared_relu", Some("false"), "False"),
    (
        "rotary_seq_len_interpolation_factor",
        None,
        "not set: positions are not interpolated",
    ),
    (
        "window_size",
        None,
        "not set: attention sees the whole text",
    ),
    (
        "mtp_num_layers",
        None,
        "not set: no layers predict further tokens",
    ),
    (
        "heterogeneous_layers_config_path",
        None,
        "not set: all layers are alike",
    ),
];

/// Forms that files of a run always say, except for those of before they existed.
const REQUIRED: [&str; 2] = ["position_embedding_type", "swiglu"];

/// Positions of Llama 3 before they were stretched, and the two factors that Megatron has no argument for.
const STRETCHED: (usize, f64, f64) = (8192, 1.0, 4.0);

/// Checks that transformers has a model of this form.
///
/// # Errors
/// [`crate::ConversionFault::UnfitArgument`] and [`crate::ConversionFault::MissingArgument`].
pub(super) fn require_form(arguments: &Arguments<'_>) -> Result<()> {
    for (name, wanted, said) in FORMS {
        match (arguments.text(name), wanted) {
            (None, _) if REQUIRED.contains(&name) => return Err(arguments.missing(name)),
            (None, _) => {}
            (Some(found), Some(wanted)) if found == wanted => {}
            _ => return Err(arguments.unfit(name, said)),
        }
    }
    Ok(())
}

/// `config.json` of a model under the names of transformers.
///
/// # Errors
/// [`crate::ConversionFault::MissingArgument`] for a fact that weights do not tell.
pub(super) fn of(
    source: &Checkpoint,
    arguments: &Arguments<'_>,
    dtype: impl Fn(DType) -> DType,
) -> Result<Companion> {
    let embeddings = source.require("model.embed_tokens.weight")?;
    let hidden = embeddings.shape.get(1).copied().unwrap_or(0);
    let heads = Heads::of(arguments, hidden)?;
    let of_first = |module: &str| source.get(&format!("model.layers.0.{module}"));
    let gate = source.require("model.layers.0.mlp.gate_proj.weight")?;
    let n_layers = (0..)
        .take_while(|layer| {
            let key = format!("model.layers.{layer}.input_layernorm.weight");
            source.get(&key).is_some()
        })
        .count();
    let required = |name| arguments.required(name, arguments.number(name)?);
    let epsilon = required("norm_epsilon")?;
    let base = required("rotary_base")?;
    let positions = arguments.count("max_position_embeddings")?;
    let positions = arguments.required("max_position_embeddings", positions)?;
    let mut config = json!({
        "bos_token_id": null,
        "eos_token_id": null,
        "head_dim": heads.width,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": gate.shape[0],
        "max_position_embeddings": positions,
        "num_attention_heads": heads.queries,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": heads.groups,
        "rms_norm_eps": epsilon,
        "rope_theta": base,
        "tie_word_embeddings": source.get("lm_head.weight").is_none(),
        "vocab_size": embeddings.shape[0],
    });
    if let Some(name) = torch_name(dtype(embeddings.dtype)) {
        config["torch_dtype"] = json!(name);
    }
    if arguments.is_set("use_rope_scaling") {
        let factor = arguments.number("rope_scaling_factor")?;
        let factor = arguments.required("rope_scaling_factor", factor)?;
        let (before, low, high) = STRETCHED;
        config["rope_scaling"] = json!({
            "rope_type": "llama3",
            "factor": factor,
            "high_freq_factor": high,
            "low_freq_factor": low,
            "original_max_position_embeddings": before,
        });
    }
    let has = |module: &str| of_first(module).is_some();
    let (of_queries, of_outputs) = (has("self_attn.q_proj.bias"), has("self_attn.o_proj.bias"));
    let of_network = has("mlp.gate_proj.bias");
    let has_norms = has("self_attn.q_norm.weight");
    let (architecture, model_type) = match (has_norms, of_queries, of_outputs, of_network) {
        (true, queries, outputs, false) if queries == outputs => {
            config["attention_bias"] = json!(queries);
            ("Qwen3ForCausalLM", "qwen3")
        }
        (false, true, false, false) => ("Qwen2ForCausalLM", "qwen2"),
        (false, queries, outputs, of_network) if queries == outputs => {
            config["attention_bias"] = json!(queries);
            config["mlp_bias"] = json!(of_network);
            ("LlamaForCausalLM", "llama")
        }
        _ => {
            return Err(super::no_counterpart(
                source,
                "model.layers.0",
                UNKNOWN_BIASES,
            ));
        }
    };
    config["architectures"] = json!([architecture]);
    config["model_type"] = json!(model_type);
    Ok(Companion::json(
        "config.json",
        &config,
        "from the arguments of the run",
    ))
}

/// Why a model with some of the biases is none of transformers'.
const UNKNOWN_BIASES: &str = "none of them has these biases and norms of queries and keys together";
