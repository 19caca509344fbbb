//! The meaning of a tensor's axes, by its name in published spellings.

use crate::recipe::AlignPart;

/// The meaning of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// An axis that no permutation moves.
    Fixed,
    /// The residual stream.
    Width,
    /// Hidden units of the feed-forward network.
    Units,
    /// Gates of the hidden units, then their values.
    Halves,
    /// Attention heads.
    Heads,
    /// Heads of keys and values, of which several heads of queries may share one.
    KeyHeads,
    /// Queries, keys and values of all heads, one after the other.
    Packed,
    /// A number for each head of all blocks side by side.
    HeadsOfBlocks,
}

impl Axis {
    /// The part of `align` that moves it.
    pub(super) fn part(self) -> Option<AlignPart> {
        match self {
            Self::Fixed => None,
            Self::Width => Some(AlignPart::Width),
            Self::Units | Self::Halves => Some(AlignPart::Units),
            Self::Heads | Self::KeyHeads | Self::Packed | Self::HeadsOfBlocks => {
                Some(AlignPart::Heads)
            }
        }
    }
}

use Axis::{Fixed, Halves, Heads, HeadsOfBlocks, KeyHeads, Packed, Units, Width};

/// A name and what its axes stand for. `#` is the number of a block, `*` any one segment.
pub(super) struct Row {
    pub name: &'static str,
    pub axes: &'static [Axis],
}

const fn row(name: &'static str, axes: &'static [Axis]) -> Row {
    Row { name, axes }
}

/// A stack of blocks that share a residual stream, and everything that reads or writes it.
pub(super) struct Tower {
    /// A name that a tensor of the first block has; its prefix begins the names of all.
    pub sign: &'static str,
    /// The number of the layout's stack.
    pub stack: u8,
    /// Tensors by their names behind that beginning.
    pub rows: &'static [Row],
    /// Tensors by their whole names.
    pub outer: &'static [Row],
}

/// A spelling of transformers.
pub(super) struct Spelling {
    /// Its towers; a checkpoint has all that have a sign in it.
    pub towers: &'static [Tower],
}

/// Every spelling; a checkpoint is of the first of which it has a sign.
pub(super) const SPELLINGS: &[Spelling] = &[
    Spelling {
        towers: &[
            Tower {
                sign: "vision_model.encoder.layers.0.self_attn.q_proj.weight",
                stack: 0,
                rows: CLIP_IMAGE,
                outer: &[],
            },
            Tower {
                sign: "text_model.encoder.layers.0.self_attn.q_proj.weight",
                stack: 1,
                rows: CLIP_TEXT,
                outer: &[],
            },
        ],
    },
    Spelling {
        towers: &[Tower {
            sign: "transformer.blocks.0.attn.qkv.weight",
            stack: 0,
            rows: MULTIWAY,
            outer: &[],
        }],
    },
    Spelling {
        towers: &[Tower {
            sign: "layers.0.self_attn.q_proj.weight",
            stack: 0,
            rows: DECODER,
            outer: &[row("lm_head.weight", &[Fixed, Width])],
        }],
    },
    Spelling {
        towers: &[Tower {
            sign: "encoder.layer.0.attention.self.query.weight",
            stack: 0,
            rows: BERT,
            outer: &[
                row("cls.predictions.transform.dense.weight", &[Fixed, Width]),
                row("cls.predictions.transform.dense.bias", &[Fixed]),
                row("cls.predictions.transform.LayerNorm.*", &[Fixed]),
                row("cls.predictions.decoder.weight", &[Fixed, Fixed]),
                row("cls.predictions.decoder.bias", &[Fixed]),
                row("cls.predictions.bias", &[Fixed]),
                row("cls.seq_relationship.weight", &[Fixed, Fixed]),
                row("cls.seq_relationship.bias", &[Fixed]),
            ],
        }],
    },
];

/// CLIP's and SigLIP's image tower as merges see it. The pooling head of SigLIP ends in the joint space, which stays.
const CLIP_IMAGE: &[Row] = &[
    row("vision_model.embeddings.class_embedding", &[Width]),
    row(
        "vision_model.embeddings.patch_embedding.weight",
        &[Width, Fixed, Fixed, Fixed],
    ),
    row("vision_model.embeddings.patch_embedding.bias", &[Width]),
    row(
        "vision_model.embeddings.position_embedding.weight",
        &[Fixed, Width],
    ),
    row("vision_model.pre_layrnorm.*", &[Width]),
    row("vision_model.post_layernorm.*", &[Width]),
    row("vision_model.encoder.layers.#.layer_norm1.*", &[Width]),
    row("vision_model.encoder.layers.#.layer_norm2.*", &[Width]),
    row(
        "vision_model.encoder.layers.#.self_attn.q_proj.weight",
        &[Heads, Width],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.q_proj.bias",
        &[Heads],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.k_proj.weight",
        &[KeyHeads, Width],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.k_proj.bias",
        &[KeyHeads],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.v_proj.weight",
        &[KeyHeads, Width],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.v_proj.bias",
        &[KeyHeads],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.out_proj.weight",
        &[Width, Heads],
    ),
    row(
        "vision_model.encoder.layers.#.self_attn.out_proj.bias",
        &[Width],
    ),
    row(
        "vision_model.encoder.layers.#.mlp.fc1.weight",
        &[Units, Width],
    ),
    row("vision_model.encoder.layers.#.mlp.fc1.bias", &[Units]),
    row(
        "vision_model.encoder.layers.#.mlp.fc2.weight",
        &[Width, Units],
    ),
    row("vision_model.encoder.layers.#.mlp.fc2.bias", &[Width]),
    row("vision_model.head.probe", &[Fixed, Fixed, Fixed]),
    row("vision_model.head.attention.q_proj.weight", &[Fixed, Fixed]),
    row("vision_model.head.attention.k_proj.weight", &[Fixed, Width]),
    row("vision_model.head.attention.v_proj.weight", &[Fixed, Width]),
    row("vision_model.head.attention.*.bias", &[Fixed]),
    row(
        "vision_model.head.attention.out_proj.weight",
        &[Fixed, Fixed],
    ),
    row("vision_model.head.layernorm.*", &[Fixed]),
    row("vision_model.head.mlp.*.weight", &[Fixed, Fixed]),
    row("vision_model.head.mlp.*.bias", &[Fixed]),
    row("visual_projection.weight", &[Fixed, Width]),
    row("logit_scale", &[]),
    row("logit_bias", &[]),
    row("logit_scale", &[Fixed]),
    row("logit_bias", &[Fixed]),
    row("classifier.weight", &[Fixed, Fixed]),
    row("classifier.bias", &[Fixed]),
];

/// Their text tower.
const CLIP_TEXT: &[Row] = &[
    row(
        "text_model.embeddings.token_embedding.weight",
        &[Fixed, Width],
    ),
    row(
        "text_model.embeddings.position_embedding.weight",
        &[Fixed, Width],
    ),
    row("text_model.final_layer_norm.*", &[Width]),
    row("text_model.encoder.layers.#.layer_norm1.*", &[Width]),
    row("text_model.encoder.layers.#.layer_norm2.*", &[Width]),
    row(
        "text_model.encoder.layers.#.self_attn.q_proj.weight",
        &[Heads, Width],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.q_proj.bias",
        &[Heads],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.k_proj.weight",
        &[KeyHeads, Width],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.k_proj.bias",
        &[KeyHeads],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.v_proj.weight",
        &[KeyHeads, Width],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.v_proj.bias",
        &[KeyHeads],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.out_proj.weight",
        &[Width, Heads],
    ),
    row(
        "text_model.encoder.layers.#.self_attn.out_proj.bias",
        &[Width],
    ),
    row(
        "text_model.encoder.layers.#.mlp.fc1.weight",
        &[Units, Width],
    ),
    row("text_model.encoder.layers.#.mlp.fc1.bias", &[Units]),
    row(
        "text_model.encoder.layers.#.mlp.fc2.weight",
        &[Width, Units],
    ),
    row("text_model.encoder.layers.#.mlp.fc2.bias", &[Width]),
    row("text_model.head.weight", &[Fixed, Width]),
    row("text_model.head.bias", &[Fixed]),
    row("text_projection.weight", &[Fixed, Width]),
];

/// The multiway models by the names of their slots; experts of a block share its heads and the residual stream, and have
/// hidden units of their own.
const MULTIWAY: &[Row] = &[
    row("transformer.blocks.#.gamma_1", &[Width]),
    row("transformer.blocks.#.gamma_2", &[Width]),
    row("transformer.blocks.#.norm1.*", &[Width]),
    row("transformer.blocks.#.norm2.*", &[Width]),
    row("transformer.blocks.#.attn.qkv.weight", &[Packed, Width]),
    row("transformer.blocks.#.attn.q_bias", &[Heads]),
    row("transformer.blocks.#.attn.v_bias", &[Heads]),
    row("transformer.blocks.#.attn.proj.weight", &[Width, Heads]),
    row("transformer.blocks.#.attn.proj.bias", &[Width]),
    row("transformer.blocks.#.mlp.fc1.weight", &[Units, Width]),
    row("transformer.blocks.#.mlp.fc1.bias", &[Units]),
    row("transformer.blocks.#.mlp.fc2.weight", &[Width, Units]),
    row("transformer.blocks.#.mlp.fc2.bias", &[Width]),
    row("text_embeddings.word_embeddings.weight", &[Fixed, Width]),
    row(
        "text_embeddings.position_embeddings.weight",
        &[Fixed, Width],
    ),
    row(
        "text_embeddings.token_type_embeddings.weight",
        &[Fixed, Width],
    ),
    row("text_embeddings.LayerNorm.*", &[Width]),
    row("token_type_embeddings.weight", &[Fixed, Width]),
    row("transformer.cls_token", &[Fixed, Fixed, Width]),
    row("transformer.mask_token", &[Fixed, Fixed, Width]),
    row(
        "transformer.patch_embed.proj.weight",
        &[Width, Fixed, Fixed, Fixed],
    ),
    row("transformer.patch_embed.proj.bias", &[Width]),
    row("transformer.pos_embed", &[Fixed, Fixed, Width]),
    row("transformer.norm.*", &[Width]),
    row("pooler.dense.weight", &[Fixed, Width]),
    row("pooler.dense.bias", &[Fixed]),
    row("relative_position_bias_table", &[Fixed, HeadsOfBlocks]),
    row(
        "temporal_relative_position_bias_table",
        &[Fixed, HeadsOfBlocks],
    ),
    row("mlm_score.transform.dense.weight", &[Fixed, Width]),
    row("mlm_score.transform.dense.bias", &[Fixed]),
    row("mlm_score.transform.LayerNorm.*", &[Fixed]),
    row("mlm_score.decoder.weight", &[Fixed, Fixed]),
    row("mlm_score.bias", &[Fixed]),
    row("mim_score.weight", &[Fixed, Width]),
    row("mim_score.bias", &[Fixed]),
    row("itm_score.fc.weight", &[Fixed, Fixed]),
    row("itm_score.fc.bias", &[Fixed]),
    row("ifm_text_proj.fc.weight", &[Fixed, Width]),
    row("ifm_image_proj.fc.weight", &[Fixed, Width]),
    row("ifm_vl_text_proj.fc.weight", &[Fixed, Width]),
    row("ifm_vl_image_proj.fc.weight", &[Fixed, Width]),
    row("logit_scale", &[]),
    row("logit_vl_scale", &[]),
    row("vqa_classifier.*.weight", &[Fixed, Fixed]),
    row("vqa_classifier.*.weight", &[Fixed]),
    row("vqa_classifier.*.bias", &[Fixed]),
    row("nlvr2_classifier.*.weight", &[Fixed, Fixed]),
    row("nlvr2_classifier.*.weight", &[Fixed]),
    row("nlvr2_classifier.*.bias", &[Fixed]),
    row("img_cls_classifier.weight", &[Fixed, Width]),
    row("img_cls_classifier.bias", &[Fixed]),
];

/// Decoders as transformers spells Llama, Mistral, Qwen and their kin.
const DECODER: &[Row] = &[
    row("embed_tokens.weight", &[Fixed, Width]),
    row("norm.weight", &[Width]),
    row("layers.#.input_layernorm.weight", &[Width]),
    row("layers.#.post_attention_layernorm.weight", &[Width]),
    row("layers.#.pre_feedforward_layernorm.weight", &[Width]),
    row("layers.#.post_feedforward_layernorm.weight", &[Width]),
    row("layers.#.self_attn.q_proj.weight", &[Heads, Width]),
    row("layers.#.self_attn.q_proj.bias", &[Heads]),
    row("layers.#.self_attn.k_proj.weight", &[KeyHeads, Width]),
    row("layers.#.self_attn.k_proj.bias", &[KeyHeads]),
    row("layers.#.self_attn.v_proj.weight", &[KeyHeads, Width]),
    row("layers.#.self_attn.v_proj.bias", &[KeyHeads]),
    row("layers.#.self_attn.o_proj.weight", &[Width, Heads]),
    row("layers.#.self_attn.o_proj.bias", &[Width]),
    // A norm of one head's numbers, the same for all heads.
    row("layers.#.self_attn.q_norm.weight", &[Fixed]),
    row("layers.#.self_attn.k_norm.weight", &[Fixed]),
    row("layers.#.self_attn.rotary_emb.inv_freq", &[Fixed]),
    row("layers.#.mlp.gate_proj.weight", &[Units, Width]),
    row("layers.#.mlp.up_proj.weight", &[Units, Width]),
    row("layers.#.mlp.gate_up_proj.weight", &[Halves, Width]),
    row("layers.#.mlp.down_proj.weight", &[Width, Units]),
];

/// BERT and its kin as transformers spells them.
const BERT: &[Row] = &[
    row("embeddings.word_embeddings.weight", &[Fixed, Width]),
    row("embeddings.position_embeddings.weight", &[Fixed, Width]),
    row("embeddings.token_type_embeddings.weight", &[Fixed, Width]),
    row("embeddings.LayerNorm.*", &[Width]),
    row(
        "encoder.layer.#.attention.self.query.weight",
        &[Heads, Width],
    ),
    row("encoder.layer.#.attention.self.query.bias", &[Heads]),
    row(
        "encoder.layer.#.attention.self.key.weight",
        &[KeyHeads, Width],
    ),
    row("encoder.layer.#.attention.self.key.bias", &[KeyHeads]),
    row(
        "encoder.layer.#.attention.self.value.weight",
        &[KeyHeads, Width],
    ),
    row("encoder.layer.#.attention.self.value.bias", &[KeyHeads]),
    row(
        "encoder.layer.#.attention.output.dense.weight",
        &[Width, Heads],
    ),
    row("encoder.layer.#.attention.output.dense.bias", &[Width]),
    row("encoder.layer.#.attention.output.LayerNorm.*", &[Width]),
    row("encoder.layer.#.intermediate.dense.weight", &[Units, Width]),
    row("encoder.layer.#.intermediate.dense.bias", &[Units]),
    row("encoder.layer.#.output.dense.weight", &[Width, Units]),
    row("encoder.layer.#.output.dense.bias", &[Width]),
    row("encoder.layer.#.output.LayerNorm.*", &[Width]),
    row("pooler.dense.weight", &[Fixed, Width]),
    row("pooler.dense.bias", &[Fixed]),
];

/// The block of a name that a pattern has, if the pattern fits: `None` within for one without a block.
pub(super) fn fits(pattern: &str, name: &str) -> Option<Option<usize>> {
    let (mut of_pattern, mut of_name) = (pattern.split('.'), name.split('.'));
    let mut block = None;
    loop {
        match (of_pattern.next(), of_name.next()) {
            (None, None) => return Some(block),
            (Some("#"), Some(number)) => block = Some(number.parse().ok()?),
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_tells_the_block() {
        assert_eq!(
            fits("layers.#.norm.*", "layers.12.norm.bias"),
            Some(Some(12))
        );
        assert_eq!(fits("norm.weight", "norm.weight"), Some(None));
        assert_eq!(fits("layers.#.norm.*", "layers.x.norm.bias"), None);
        assert_eq!(fits("layers.#.norm", "layers.1.norm.bias"), None);
        assert_eq!(fits("layers.#.norm.bias", "layers.1.norm"), None);
    }
}
