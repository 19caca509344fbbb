//! The architectures whose tensors have names in Hugging Face.
//!
//! Source: `tensor_mapping.py` and `convert_hf_to_gguf.py` of llama.cpp, `clip.cpp` for pictures.

use super::value;
use crate::TensorSource;
use crate::io::PlainValue;

/// A module's name in GGUF, and in Hugging Face. `{n}` stands for the number of a block, `{e}` in the second for that of an
/// expert, whose matrices GGUF has in one tensor. `.weight` or `.bias` follow both.
pub(super) type Row = (&'static str, &'static str);

/// An architecture: a row of [`ARCHITECTURES`].
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name in `general.architecture`.
    pub(super) name: &'static str,
    /// `model_type` of its config.json.
    pub(super) model_type: &'static str,
    /// Names of its modules.
    pub(super) rows: &'static [&'static [Row]],
    /// Whether rows of queries and keys are in pairs for rotation.
    pub(super) is_turned: bool,
    /// Whether weights of norms are stored with one added.
    pub(super) has_norms_plus_one: bool,
    /// Whether embeddings are the head, too, where config.json does not say.
    pub(super) is_tied: bool,
    /// The base of the frequencies of rotary positions, where config.json does not say.
    pub(super) rope_base: f64,
    /// Whether it is written; the others are only read.
    pub(super) is_written: bool,
}

impl Architecture {
    /// The architecture of a file that says `said`.
    pub(super) fn of(said: &str, source: &dyn TensorSource) -> Option<&'static Self> {
        if said == "clip" {
            return clip_of(source);
        }
        let has_experts = matches!(
            value(source.info(), &format!("{said}.expert_count")),
            Some(PlainValue::Integer(1..))
        );
        let model_type = match (said, has_experts) {
            ("llama", true) => Some("mixtral"),
            _ => None,
        };
        ARCHITECTURES.iter().find(|known| {
            known.name == said && model_type.is_none_or(|wanted| known.model_type == wanted)
        })
    }

    /// The architecture that is written for this `model_type`.
    pub(super) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        let is_it = |known: &&Self| known.model_type == model_type && known.is_written;
        ARCHITECTURES.iter().find(is_it)
    }
}

/// Two towers, or the image tower of a model with a projector of two layers.
fn clip_of(source: &dyn TensorSource) -> Option<&'static Architecture> {
    let projector = value(source.info(), "clip.projector_type");
    let is_plain = match projector {
        None => true,
        Some(PlainValue::Text(kind)) => kind == "mlp",
        Some(_) => false,
    };
    let names = || {
        source
            .tensors()
            .iter()
            .filter_map(|entry| entry.name.as_deref())
    };
    let has_projector = names().any(|name| name.starts_with("mm."));
    let model_type = if has_projector { "llava" } else { "clip" };
    let mut known = ARCHITECTURES.iter();
    known.find(|known| is_plain && known.name == "clip" && known.model_type == model_type)
}

/// Tensors that loaders compute from the settings.
pub(super) const COMPUTED: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

const AROUND: &[Row] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];
const ATTENTION: &[Row] = &[
    ("blk.{n}.attn_norm", "model.layers.{n}.input_layernorm"),
    ("blk.{n}.attn_q", "model.layers.{n}.self_attn.q_proj"),
    ("blk.{n}.attn_k", "model.layers.{n}.self_attn.k_proj"),
    ("blk.{n}.attn_v", "model.layers.{n}.self_attn.v_proj"),
    ("blk.{n}.attn_output", "model.layers.{n}.self_attn.o_proj"),
];
const PACKED_ATTENTION: &[Row] = &[
    ("blk.{n}.attn_norm", "model.layers.{n}.input_layernorm"),
    ("blk.{n}.attn_qkv", "model.layers.{n}.self_attn.qkv_proj"),
    ("blk.{n}.attn_output", "model.layers.{n}.self_attn.o_proj"),
];
const HEAD_NORMS: &[Row] = &[
    ("blk.{n}.attn_q_norm", "model.layers.{n}.self_attn.q_norm"),
    ("blk.{n}.attn_k_norm", "model.layers.{n}.self_attn.k_norm"),
];
const SECOND_NORM: &[Row] = &[(
    "blk.{n}.ffn_norm",
    "model.layers.{n}.post_attention_layernorm",
)];
const FOUR_NORMS: &[Row] = &[
    (
        "blk.{n}.post_attention_norm",
        "model.layers.{n}.post_attention_layernorm",
    ),
    (
        "blk.{n}.ffn_norm",
        "model.layers.{n}.pre_feedforward_layernorm",
    ),
    (
        "blk.{n}.post_ffw_norm",
        "model.layers.{n}.post_feedforward_layernorm",
    ),
];
const GATED: &[Row] = &[
    ("blk.{n}.ffn_gate", "model.layers.{n}.mlp.gate_proj"),
    ("blk.{n}.ffn_up", "model.layers.{n}.mlp.up_proj"),
    ("blk.{n}.ffn_down", "model.layers.{n}.mlp.down_proj"),
];
const PACKED_GATED: &[Row] = &[
    ("blk.{n}.ffn_up", "model.layers.{n}.mlp.gate_up_proj"),
    ("blk.{n}.ffn_down", "model.layers.{n}.mlp.down_proj"),
];
const MIXTRAL_EXPERTS: &[Row] = &[
    (
        "blk.{n}.ffn_gate_inp",
        "model.layers.{n}.block_sparse_moe.gate",
    ),
    (
        "blk.{n}.ffn_gate_exps",
        "model.layers.{n}.block_sparse_moe.experts.{e}.w1",
    ),
    (
        "blk.{n}.ffn_down_exps",
        "model.layers.{n}.block_sparse_moe.experts.{e}.w2",
    ),
    (
        "blk.{n}.ffn_up_exps",
        "model.layers.{n}.block_sparse_moe.experts.{e}.w3",
    ),
];
const EXPERTS: &[Row] = &[
    ("blk.{n}.ffn_gate_inp", "model.layers.{n}.mlp.gate"),
    (
        "blk.{n}.ffn_gate_exps",
        "model.layers.{n}.mlp.experts.{e}.gate_proj",
    ),
    (
        "blk.{n}.ffn_down_exps",
        "model.layers.{n}.mlp.experts.{e}.down_proj",
    ),
    (
        "blk.{n}.ffn_up_exps",
        "model.layers.{n}.mlp.experts.{e}.up_proj",
    ),
];
const SHARED_EXPERT: &[Row] = &[
    ("blk.{n}.ffn_gate_inp_shexp", SHARED_EXPERT_GATE),
    (
        "blk.{n}.ffn_gate_shexp",
        "model.layers.{n}.mlp.shared_expert.gate_proj",
    ),
    (
        "blk.{n}.ffn_down_shexp",
        "model.layers.{n}.mlp.shared_expert.down_proj",
    ),
    (
        "blk.{n}.ffn_up_shexp",
        "model.layers.{n}.mlp.shared_expert.up_proj",
    ),
];
/// A matrix of one row in Hugging Face, a row in GGUF.
pub(super) const SHARED_EXPERT_GATE: &str = "model.layers.{n}.mlp.shared_expert_gate";

/// A number in Hugging Face, a row of one in GGUF.
pub(super) const LOGIT_SCALE: &str = "logit_scale";

const IMAGES: &[Row] = &[
    ("v.class_embd", "vision_model.embeddings.class_embedding"),
    ("v.patch_embd", "vision_model.embeddings.patch_embedding"),
    (
        "v.position_embd",
        "vision_model.embeddings.position_embedding",
    ),
    ("v.pre_ln", "vision_model.pre_layrnorm"),
    ("v.post_ln", "vision_model.post_layernorm"),
    (
        "v.blk.{n}.attn_q",
        "vision_model.encoder.layers.{n}.self_attn.q_proj",
    ),
    (
        "v.blk.{n}.attn_k",
        "vision_model.encoder.layers.{n}.self_attn.k_proj",
    ),
    (
        "v.blk.{n}.attn_v",
        "vision_model.encoder.layers.{n}.self_attn.v_proj",
    ),
    (
        "v.blk.{n}.attn_out",
        "vision_model.encoder.layers.{n}.self_attn.out_proj",
    ),
    (
        "v.blk.{n}.ln1",
        "vision_model.encoder.layers.{n}.layer_norm1",
    ),
    (
        "v.blk.{n}.ln2",
        "vision_model.encoder.layers.{n}.layer_norm2",
    ),
    (
        "v.blk.{n}.ffn_up",
        "vision_model.encoder.layers.{n}.mlp.fc1",
    ),
    (
        "v.blk.{n}.ffn_down",
        "vision_model.encoder.layers.{n}.mlp.fc2",
    ),
];
const TEXTS: &[Row] = &[
    ("t.token_embd", "text_model.embeddings.token_embedding"),
    (
        "t.position_embd",
        "text_model.embeddings.position_embedding",
    ),
    ("t.post_ln", "text_model.final_layer_norm"),
    (
        "t.blk.{n}.attn_q",
        "text_model.encoder.layers.{n}.self_attn.q_proj",
    ),
    (
        "t.blk.{n}.attn_k",
        "text_model.encoder.layers.{n}.self_attn.k_proj",
    ),
    (
        "t.blk.{n}.attn_v",
        "text_model.encoder.layers.{n}.self_attn.v_proj",
    ),
    (
        "t.blk.{n}.attn_out",
        "text_model.encoder.layers.{n}.self_attn.out_proj",
    ),
    ("t.blk.{n}.ln1", "text_model.encoder.layers.{n}.layer_norm1"),
    ("t.blk.{n}.ln2", "text_model.encoder.layers.{n}.layer_norm2"),
    ("t.blk.{n}.ffn_up", "text_model.encoder.layers.{n}.mlp.fc1"),
    (
        "t.blk.{n}.ffn_down",
        "text_model.encoder.layers.{n}.mlp.fc2",
    ),
    ("text_projection", "text_projection"),
    ("visual_projection", "visual_projection"),
    (LOGIT_SCALE, LOGIT_SCALE),
];
const PROJECTOR: &[Row] = &[
    ("mm.0", "multi_modal_projector.linear_1"),
    ("mm.2", "multi_modal_projector.linear_2"),
];

/// The usual rows of a language model: matrices and norms as they are.
const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    rows: &[AROUND, ATTENTION, SECOND_NORM, GATED],
    is_turned: false,
    has_norms_plus_one: false,
    is_tied: false,
    rope_base: 10_000.0,
    is_written: true,
};

/// All architectures.
static ARCHITECTURES: [Architecture; 15] = [
    Architecture {
        name: "llama",
        model_type: "llama",
        is_turned: true,
        ..PLAIN
    },
    Architecture {
        name: "llama",
        model_type: "mistral",
        is_turned: true,
        ..PLAIN
    },
    Architecture {
        name: "llama",
        model_type: "mixtral",
        rows: &[AROUND, ATTENTION, SECOND_NORM, MIXTRAL_EXPERTS],
        is_turned: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen2",
        model_type: "qwen2",
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        rows: &[AROUND, ATTENTION, HEAD_NORMS, SECOND_NORM, GATED],
        ..PLAIN
    },
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        rows: &[AROUND, ATTENTION, SECOND_NORM, EXPERTS, SHARED_EXPERT],
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        rows: &[AROUND, ATTENTION, HEAD_NORMS, SECOND_NORM, EXPERTS],
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        rows: &[AROUND, PACKED_ATTENTION, SECOND_NORM, PACKED_GATED],
        ..PLAIN
    },
    Architecture {
        name: "gemma",
        model_type: "gemma",
        has_norms_plus_one: true,
        is_tied: true,
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        rows: &[AROUND, ATTENTION, FOUR_NORMS, GATED],
        has_norms_plus_one: true,
        is_tied: true,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        rows: &[AROUND, ATTENTION, HEAD_NORMS, FOUR_NORMS, GATED],
        has_norms_plus_one: true,
        is_tied: true,
        rope_base: 1_000_000.0,
        ..PLAIN
    },
    Architecture {
        name: "smollm3",
        model_type: "smollm3",
        is_turned: true,
        is_tied: true,
        rope_base: 2_000_000.0,
        ..PLAIN
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        is_turned: true,
        ..PLAIN
    },
    Architecture {
        name: "clip",
        model_type: "clip",
        rows: &[IMAGES, TEXTS],
        ..PLAIN
    },
    Architecture {
        name: "clip",
        model_type: "llava",
        rows: &[IMAGES, PROJECTOR],
        is_written: false,
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_stands_for_two_modules() {
        for architecture in &ARCHITECTURES {
            let rows = || architecture.rows.iter().copied().flatten();
            for side in [|row: &Row| row.0, |row: &Row| row.1] {
                let mut names: Vec<&str> = rows().map(side).collect();
                names.sort_unstable();
                let n_names = names.len();
                names.dedup();
                assert_eq!(names.len(), n_names, "{architecture:?}");
            }
        }
    }
}
