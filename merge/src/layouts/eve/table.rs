//! The table of keys: one row a parameter, with its kind and its shape in a model's sizes.

use crate::ParamKind;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// The same in every model.
    Fixed(usize),
    /// In multiples of the width.
    Width(usize),
    /// Inner size of every feed-forward network.
    Ffn,
    /// Side of a patch in pixels.
    Patch,
    /// Numbers of a patch.
    Pixels,
    /// Patches and the class token.
    ImageTokens,
    /// Tokens.
    Vocabulary,
    /// Text positions.
    TextPositions,
    /// Routed experts of a block.
    Experts,
    /// The input of a task's classifier: one state, or those of two images.
    Read,
    /// Classes of the classifier of a task.
    Classes,
    /// Rows of the table of relative positions.
    TableRows,
    /// Its columns: heads of all blocks.
    TableColumns,
}

/// A parameter: the end of its key.
#[derive(Debug)]
pub(super) struct Parameter {
    /// The end of the key.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// The models that hold it.
    pub presence: Presence,
    /// Its shape.
    pub shape: &'static [Axis],
}

/// The models that hold a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// All.
    Always,
    /// Pre-trained ones. Published files were not to be had: the names of heads are this program's.
    Pretrained,
    /// Those for retrieval.
    Retrieval,
    /// Those with a classifier of two layers: VQA, and NLVR2 without attention between the images.
    Classifier,
    /// Those for NLVR2 whose images attend to each other.
    Pairs,
    /// None that is drawn: a setting of the published program, heads of its earlier experiments, and forms of pre-training
    /// that recipes ask for.
    Unreleased,
}

/// The first part of the backbone's keys in files of tasks and of pre-training.
pub(super) const BACKBONE: &str = "backbone.";
/// The first part of blocks' keys, behind [`BACKBONE`].
pub(super) const BLOCKS: &str = "encoder.layers.";
/// The first part of a mixture's keys in its block.
pub(super) const MOE: &str = "mlp_moe.moe.";
/// The first part of routed experts' keys behind [`MOE`]; the index of the expert follows.
pub(super) const ROUTED: &str = "experts.experts.";
/// The router's key behind [`MOE`].
pub(super) const ROUTER: &str = "gate.wg.weight";
/// The table of image positions, `(tokens, d)`.
pub(super) const POSITIONS: &str = "pos_embed_vision";
/// The buffer of image positions, `(1, tokens)`.
pub(super) const IMAGE_POSITION_IDS: &str = "position_ids_vision";
/// The table of relative positions of all blocks.
pub(super) const RELATIVE_TABLE: &str = "encoder.relative_position_bias_table";

const fn row(key: &'static str, kind: ParamKind, shape: &'static [Axis]) -> Parameter {
    held(key, kind, Presence::Always, shape)
}

const fn held(
    key: &'static str,
    kind: ParamKind,
    presence: Presence,
    shape: &'static [Axis],
) -> Parameter {
    Parameter {
        key,
        kind,
        presence,
        shape,
    }
}

const D: Axis = Axis::Width(1);

use Axis::{Classes, Ffn, Fixed, ImageTokens, Patch, Pixels, Read, Vocabulary, Width};
use ParamKind::{Bias, Embedding, LinearWeight, Norm, Other, PositionBias, Scale};
use Presence::{Classifier, Pairs, Pretrained, Retrieval, Unreleased};

/// Parameters of a block that all modalities share.
pub(super) const SHARED: &[Parameter] = &[
    row("gamma_1", Scale, &[D]),
    row("gamma_2", Scale, &[D]),
    row("attn.q_bias", Bias, &[D]),
    row("attn.v_bias", Bias, &[D]),
    row("attn.qkv.weight", LinearWeight, &[Width(3), D]),
    row("attn.proj.weight", LinearWeight, &[D, D]),
    row("attn.proj.bias", Bias, &[D]),
    row("norm1.weight", Norm, &[D]),
    row("norm1.bias", Norm, &[D]),
];

/// A feed-forward network, of a modality or of a router's expert.
pub(super) const FFN: &[Parameter] = &[
    row("fc1.weight", LinearWeight, &[Ffn, D]),
    row("fc1.bias", Bias, &[Ffn]),
    row("fc2.weight", LinearWeight, &[D, Ffn]),
    row("fc2.bias", Bias, &[D]),
];

/// The norm before a feed-forward network.
pub(super) const NORM: &[Parameter] = &[row("weight", Norm, &[D]), row("bias", Norm, &[D])];

/// A mixture of experts, without the experts.
pub(super) const MIXTURE: &[Parameter] = &[
    row("vision_embed", Embedding, &[D]),
    row("text_embed", Embedding, &[D]),
    row(ROUTER, LinearWeight, &[Axis::Experts, D]),
];

/// The first part of the keys of blocks between the encoder and the head of hidden patches; their index follows.
pub(super) const DECODER: &str = "decoder.layers.";

/// A block there, beside what all blocks have ([`SHARED`]).
pub(super) const DECODER_BLOCK: &[Parameter] = &[
    held("norm2.weight", Norm, Unreleased, &[D]),
    held("norm2.bias", Norm, Unreleased, &[D]),
    held("mlp.fc1.weight", LinearWeight, Unreleased, &[Ffn, D]),
    held("mlp.fc1.bias", Bias, Unreleased, &[Ffn]),
    held("mlp.fc2.weight", LinearWeight, Unreleased, &[D, Ffn]),
    held("mlp.fc2.bias", Bias, Unreleased, &[D]),
];

/// The backbone outside the blocks.
pub(super) const OUTER: &[Parameter] = &[
    row("class_embedding_vision", Embedding, &[D]),
    row("type_embed_vision", Embedding, &[D]),
    row("type_embed_text", Embedding, &[D]),
    row(POSITIONS, Embedding, &[ImageTokens, D]),
    row("pos_embed_text", Embedding, &[Axis::TextPositions, D]),
    row(IMAGE_POSITION_IDS, Other, &[Fixed(1), ImageTokens]),
    row("position_ids_text", Other, &[Axis::TextPositions]),
    row(
        "patch_embed.weight",
        Embedding,
        &[D, Fixed(3), Patch, Patch],
    ),
    row("patch_embed.bias", Bias, &[D]),
    row("word_embedding.weight", Embedding, &[Axis::Vocabulary, D]),
    row("layer_norm_text.weight", Norm, &[D]),
    row("layer_norm_text.bias", Norm, &[D]),
    row("pre_layrnorm.weight", Norm, &[D]),
    row("pre_layrnorm.bias", Norm, &[D]),
    row("norm.weight", Norm, &[D]),
    row("norm.bias", Norm, &[D]),
    held("mask_embed_vision", Embedding, Pretrained, &[D]),
    held(
        RELATIVE_TABLE,
        PositionBias,
        Unreleased,
        &[Axis::TableRows, Axis::TableColumns],
    ),
];

/// The parts beside the backbone.
pub(super) const HEADS: &[Parameter] = &[
    held("pixel_head.weight", LinearWeight, Pretrained, &[Pixels, D]),
    held("pixel_head.bias", Bias, Pretrained, &[Pixels]),
    held(
        "mlm_head.transform.dense.weight",
        LinearWeight,
        Pretrained,
        &[D, D],
    ),
    held("mlm_head.transform.dense.bias", Bias, Pretrained, &[D]),
    held(
        "mlm_head.transform.LayerNorm.weight",
        Norm,
        Pretrained,
        &[D],
    ),
    held("mlm_head.transform.LayerNorm.bias", Norm, Pretrained, &[D]),
    held("mlm_head.bias", Bias, Pretrained, &[Vocabulary]),
    held(
        "mlm_head.decoder.weight",
        LinearWeight,
        Unreleased,
        &[Vocabulary, D],
    ),
    held("decoder.norm.weight", Norm, Unreleased, &[D]),
    held("decoder.norm.bias", Norm, Unreleased, &[D]),
    held("itc_temp", Scale, Retrieval, &[]),
    held(
        "itc_vision_proj_head.weight",
        LinearWeight,
        Retrieval,
        &[D, D],
    ),
    held(
        "itc_text_proj_head.weight",
        LinearWeight,
        Retrieval,
        &[D, D],
    ),
    held("itm_head.weight", LinearWeight, Retrieval, &[Fixed(2), D]),
    held("itm_head.bias", Bias, Retrieval, &[Fixed(2)]),
    held(
        "output.0.weight",
        LinearWeight,
        Classifier,
        &[Width(2), Read],
    ),
    held("output.0.bias", Bias, Classifier, &[Width(2)]),
    held("output.1.weight", Norm, Classifier, &[Width(2)]),
    held("output.1.bias", Norm, Classifier, &[Width(2)]),
    held(
        "output.3.weight",
        LinearWeight,
        Classifier,
        &[Classes, Width(2)],
    ),
    held("output.3.bias", Bias, Classifier, &[Classes]),
    held("attn1.in_proj_weight", LinearWeight, Pairs, &[Width(3), D]),
    held("attn1.in_proj_bias", Bias, Pairs, &[Width(3)]),
    held("attn1.out_proj.weight", LinearWeight, Pairs, &[D, D]),
    held("attn1.out_proj.bias", Bias, Pairs, &[D]),
    held("attn2.in_proj_weight", LinearWeight, Pairs, &[Width(3), D]),
    held("attn2.in_proj_bias", Bias, Pairs, &[Width(3)]),
    held("attn2.out_proj.weight", LinearWeight, Pairs, &[D, D]),
    held("attn2.out_proj.bias", Bias, Pairs, &[D]),
    held("fc.0.weight", LinearWeight, Pairs, &[D, Width(2)]),
    held("fc.0.bias", Bias, Pairs, &[D]),
    held("attn_pool.fc.0.weight", LinearWeight, Pairs, &[Fixed(1), D]),
    held("attn_pool.fc.0.bias", Bias, Pairs, &[Fixed(1)]),
    held(
        "nlvr2_output.weight",
        LinearWeight,
        Pairs,
        &[Fixed(2), Width(2)],
    ),
    held("nlvr2_output.bias", Bias, Pairs, &[Fixed(2)]),
    held("mitc_temp", Scale, Unreleased, &[]),
    held(
        "mitc_vision_proj_head.weight",
        LinearWeight,
        Unreleased,
        &[D, D],
    ),
    held(
        "mitc_text_proj_head.weight",
        LinearWeight,
        Unreleased,
        &[D, D],
    ),
    held("mitm_head.weight", LinearWeight, Unreleased, &[Fixed(2), D]),
    held("mitm_head.bias", Bias, Unreleased, &[Fixed(2)]),
    held(
        "itc_vl_vision_proj_head.weight",
        LinearWeight,
        Unreleased,
        &[D, D],
    ),
    held(
        "itc_vl_text_proj_head.weight",
        LinearWeight,
        Unreleased,
        &[D, D],
    ),
];
