//! The table of keys: groups of parameters in the order in which the published program registers them, one
//! row a parameter, with its kind and its shape in a model's sizes.

use crate::ParamKind;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    /// The same in every model.
    Fixed(usize),
    /// In multiples of the width of the image tower.
    Image(usize),
    /// Inner size of the image tower's FFN.
    ImageFfn,
    /// Side of a patch in pixels.
    Patch,
    /// Patches and the class token.
    ImageTokens,
    /// Text positions of CLIP's own text tower, of which only remnants are kept.
    ClipTextPositions,
    /// Width of CLIP's own text tower.
    ClipText,
    /// Width of the text tower.
    Text,
    /// Inner size of the text tower's FFN.
    TextFfn,
    /// In multiples of the width of the cross-modal layers and of the reconstructor.
    Hidden(usize),
    /// Inner size of their FFN.
    HiddenFfn,
    /// Tokens.
    Vocabulary,
    /// Rows of the text position table.
    TextPositions,
    /// Rows of the outer token type table: 2, or 3 for NLVR2.
    TokenTypes,
    /// Answers of the VQA classifier.
    Answers,
}

/// A parameter: what follows the prefix of its group, or the index of its block.
#[derive(Debug)]
pub(super) struct Parameter {
    /// The end of the key.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// Its shape.
    pub shape: &'static [Axis],
}

/// The models that hold a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// All.
    Always,
    /// Those with two directions and a reconstructor.
    ThreeStream,
    /// A head of masked language modeling.
    Masked,
    /// A head that writes from left to right, of an autoregressive or a captioning model.
    Causal,
    /// The heads of free language modeling.
    Free,
    /// A head of image-text matching.
    Matching,
    /// The head of VQA.
    Vqa,
    /// The head of NLVR2.
    Nlvr2,
    /// The head that ranks pairs.
    Ranking,
}

/// Parameters whose keys begin alike.
#[derive(Debug)]
pub(super) struct Group {
    /// The first part of the keys.
    pub prefix: &'static str,
    /// The stack, for parameters of blocks; the index of the block follows the prefix.
    pub stack: Option<u8>,
    /// The parameters.
    pub parameters: &'static [Parameter],
    /// The models that hold them.
    pub presence: Presence,
    /// The prefix of the group that these are other names of.
    pub alias_of: Option<&'static str>,
}

/// Names of the stacks of blocks, in the order of their indices.
pub(super) const STACKS: [&str; 5] = [
    "image",
    "text",
    "cross_modal",
    "reconstructor_bottom",
    "reconstructor_top",
];

/// The stack of the image tower.
pub(super) const IMAGE: u8 = 0;
/// That of the text tower.
pub(super) const TEXT: u8 = 1;
/// That of the cross-modal layers.
pub(super) const CROSS: u8 = 2;
/// The reconstructor's layers beside the text tower.
pub(super) const BOTTOM: u8 = 3;
/// The reconstructor's layers beside the cross-modal ones.
pub(super) const TOP: u8 = 4;

/// The table of image positions, `(tokens, d)`.
pub(crate) const POSITIONS: &str = "vit_model.visual.positional_embedding";
/// The first part of text embeddings' keys.
pub(super) const EMBEDDINGS: &str = "text_transformer.embeddings.";
/// The end of the key of a buffer that loaders rebuild.
pub(super) const POSITION_IDS: &str = "position_ids";
/// The first part of the shared language head's keys.
pub(super) const HEAD: &str = "lm_score.";

const fn row(key: &'static str, kind: ParamKind, shape: &'static [Axis]) -> Parameter {
    Parameter { key, kind, shape }
}

const fn group(
    prefix: &'static str,
    parameters: &'static [Parameter],
    presence: Presence,
) -> Group {
    Group {
        prefix,
        stack: None,
        parameters,
        presence,
        alias_of: None,
    }
}

const fn blocks(stack: u8, group: Group) -> Group {
    Group {
        stack: Some(stack),
        ..group
    }
}

const fn alias(of: &'static str, group: Group) -> Group {
    Group {
        alias_of: Some(of),
        ..group
    }
}

const T: Axis = Axis::Text;
const D: Axis = Axis::Hidden(1);
const V: Axis = Axis::Image(1);

/// A linear layer between spaces of the cross-modal width.
#[rustfmt::skip] // a table: one row a line
const DENSE: &[Parameter] = {
    use ParamKind::{Bias, LinearWeight};
    &[
        row("dense.weight", LinearWeight, &[D, D]),
        row("dense.bias", Bias, &[D]),
    ]
};

#[rustfmt::skip]
const NORM: &[Parameter] = {
    use ParamKind::Norm;
    &[
        row("weight", Norm, &[V]),
        row("bias", Norm, &[V]),
    ]
};

#[rustfmt::skip]
const CLIP_NORM: &[Parameter] = {
    use ParamKind::Norm;
    &[
        row("weight", Norm, &[Axis::ClipText]),
        row("bias", Norm, &[Axis::ClipText]),
    ]
};

#[rustfmt::skip]
const TEXT_TRANSFORM: &[Parameter] = {
    use ParamKind::{Bias, LinearWeight};
    &[
        row("weight", LinearWeight, &[D, T]),
        row("bias", Bias, &[D]),
    ]
};

#[rustfmt::skip]
const IMAGE_TRANSFORM: &[Parameter] = {
    use ParamKind::{Bias, LinearWeight};
    &[
        row("weight", LinearWeight, &[D, V]),
        row("bias", Bias, &[D]),
    ]
};

/// A pre-norm block of CLIP's image tower; `in_proj` is one linear layer for queries, keys and values.
#[rustfmt::skip]
const IMAGE_BLOCK: &[Parameter] = {
    use Axis::{Image, ImageFfn};
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("attn.in_proj_weight", LinearWeight, &[Image(3), V]),
        row("attn.in_proj_bias", Bias, &[Image(3)]),
        row("attn.out_proj.weight", LinearWeight, &[V, V]),
        row("attn.out_proj.bias", Bias, &[V]),
        row("ln_1.weight", Norm, &[V]),
        row("ln_1.bias", Norm, &[V]),
        row("mlp.c_fc.weight", LinearWeight, &[ImageFfn, V]),
        row("mlp.c_fc.bias", Bias, &[ImageFfn]),
        row("mlp.c_proj.weight", LinearWeight, &[V, ImageFfn]),
        row("mlp.c_proj.bias", Bias, &[V]),
        row("ln_2.weight", Norm, &[V]),
        row("ln_2.bias", Norm, &[V]),
    ]
};

#[rustfmt::skip]
const TEXT_EMBEDDINGS: &[Parameter] = {
    use Axis::{Fixed, TextPositions, Vocabulary};
    use ParamKind::{Embedding, Norm, Other};
    &[
        row(POSITION_IDS, Other, &[Fixed(1), TextPositions]),
        row("word_embeddings.weight", Embedding, &[Vocabulary, T]),
        row("position_embeddings.weight", Embedding, &[TextPositions, T]),
        row("token_type_embeddings.weight", Embedding, &[Fixed(1), T]),
        row("LayerNorm.weight", Norm, &[T]),
        row("LayerNorm.bias", Norm, &[T]),
    ]
};

/// A post-norm layer of RoBERTa.
#[rustfmt::skip]
const TEXT_BLOCK: &[Parameter] = {
    use Axis::TextFfn;
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("attention.self.query.weight", LinearWeight, &[T, T]),
        row("attention.self.query.bias", Bias, &[T]),
        row("attention.self.key.weight", LinearWeight, &[T, T]),
        row("attention.self.key.bias", Bias, &[T]),
        row("attention.self.value.weight", LinearWeight, &[T, T]),
        row("attention.self.value.bias", Bias, &[T]),
        row("attention.output.dense.weight", LinearWeight, &[T, T]),
        row("attention.output.dense.bias", Bias, &[T]),
        row("attention.output.LayerNorm.weight", Norm, &[T]),
        row("attention.output.LayerNorm.bias", Norm, &[T]),
        row("intermediate.dense.weight", LinearWeight, &[TextFfn, T]),
        row("intermediate.dense.bias", Bias, &[TextFfn]),
        row("output.dense.weight", LinearWeight, &[T, TextFfn]),
        row("output.dense.bias", Bias, &[T]),
        row("output.LayerNorm.weight", Norm, &[T]),
        row("output.LayerNorm.bias", Norm, &[T]),
    ]
};

#[rustfmt::skip]
const TEXT_POOLER: &[Parameter] = {
    use ParamKind::{Bias, LinearWeight};
    &[
        row("dense.weight", LinearWeight, &[T, T]),
        row("dense.bias", Bias, &[T]),
    ]
};

/// A layer of self-attention, attention to the image, and an FFN.
#[rustfmt::skip]
const CROSS_BLOCK: &[Parameter] = {
    use Axis::HiddenFfn;
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("attention.self.query.weight", LinearWeight, &[D, D]),
        row("attention.self.query.bias", Bias, &[D]),
        row("attention.self.key.weight", LinearWeight, &[D, D]),
        row("attention.self.key.bias", Bias, &[D]),
        row("attention.self.value.weight", LinearWeight, &[D, D]),
        row("attention.self.value.bias", Bias, &[D]),
        row("attention.output.dense.weight", LinearWeight, &[D, D]),
        row("attention.output.dense.bias", Bias, &[D]),
        row("attention.output.LayerNorm.weight", Norm, &[D]),
        row("attention.output.LayerNorm.bias", Norm, &[D]),
        row("crossattention.self.query.weight", LinearWeight, &[D, D]),
        row("crossattention.self.query.bias", Bias, &[D]),
        row("crossattention.self.key.weight", LinearWeight, &[D, D]),
        row("crossattention.self.key.bias", Bias, &[D]),
        row("crossattention.self.value.weight", LinearWeight, &[D, D]),
        row("crossattention.self.value.bias", Bias, &[D]),
        row("crossattention.output.dense.weight", LinearWeight, &[D, D]),
        row("crossattention.output.dense.bias", Bias, &[D]),
        row("crossattention.output.LayerNorm.weight", Norm, &[D]),
        row("crossattention.output.LayerNorm.bias", Norm, &[D]),
        row("intermediate.dense.weight", LinearWeight, &[HiddenFfn, D]),
        row("intermediate.dense.bias", Bias, &[HiddenFfn]),
        row("output.dense.weight", LinearWeight, &[D, HiddenFfn]),
        row("output.dense.bias", Bias, &[D]),
        row("output.LayerNorm.weight", Norm, &[D]),
        row("output.LayerNorm.bias", Norm, &[D]),
    ]
};

/// A layer of the reconstructor: attention to both streams, and an FFN.
#[rustfmt::skip]
const FUSION_BLOCK: &[Parameter] = {
    use Axis::HiddenFfn;
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("crossattention.self.query.weight", LinearWeight, &[D, D]),
        row("crossattention.self.query.bias", Bias, &[D]),
        row("crossattention.self.key.weight", LinearWeight, &[D, D]),
        row("crossattention.self.key.bias", Bias, &[D]),
        row("crossattention.self.value.weight", LinearWeight, &[D, D]),
        row("crossattention.self.value.bias", Bias, &[D]),
        row("crossattention.output.dense.weight", LinearWeight, &[D, D]),
        row("crossattention.output.dense.bias", Bias, &[D]),
        row("crossattention.output.LayerNorm.weight", Norm, &[D]),
        row("crossattention.output.LayerNorm.bias", Norm, &[D]),
        row("intermediate.dense.weight", LinearWeight, &[HiddenFfn, D]),
        row("intermediate.dense.bias", Bias, &[HiddenFfn]),
        row("output.dense.weight", LinearWeight, &[D, HiddenFfn]),
        row("output.dense.bias", Bias, &[D]),
        row("output.LayerNorm.weight", Norm, &[D]),
        row("output.LayerNorm.bias", Norm, &[D]),
    ]
};

/// A head that gives each token a score.
#[rustfmt::skip]
const LANGUAGE_HEAD: &[Parameter] = {
    use Axis::Vocabulary;
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("bias", Bias, &[Vocabulary]),
        row("transform.dense.weight", LinearWeight, &[D, D]),
        row("transform.dense.bias", Bias, &[D]),
        row("transform.LayerNorm.weight", Norm, &[D]),
        row("transform.LayerNorm.bias", Norm, &[D]),
        row("decoder.weight", LinearWeight, &[Vocabulary, D]),
    ]
};

#[rustfmt::skip]
const MATCHING_HEAD: &[Parameter] = {
    use Axis::Fixed;
    use ParamKind::{Bias, LinearWeight};
    &[
        row("fc.weight", LinearWeight, &[Fixed(2), D]),
        row("fc.bias", Bias, &[Fixed(2)]),
    ]
};

#[rustfmt::skip]
const RANKING_HEAD: &[Parameter] = {
    use Axis::Fixed;
    use ParamKind::{Bias, LinearWeight};
    &[
        row("weight", LinearWeight, &[Fixed(1), D]),
        row("bias", Bias, &[Fixed(1)]),
    ]
};

#[rustfmt::skip]
const VQA_HEAD: &[Parameter] = {
    use Axis::{Answers, Hidden};
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("0.weight", LinearWeight, &[Hidden(2), D]),
        row("0.bias", Bias, &[Hidden(2)]),
        row("1.weight", Norm, &[Hidden(2)]),
        row("1.bias", Norm, &[Hidden(2)]),
        row("3.weight", LinearWeight, &[Answers, Hidden(2)]),
        row("3.bias", Bias, &[Answers]),
    ]
};

#[rustfmt::skip]
const NLVR2_HEAD: &[Parameter] = {
    use Axis::{Fixed, Hidden};
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        row("0.weight", LinearWeight, &[Hidden(2), Hidden(2)]),
        row("0.bias", Bias, &[Hidden(2)]),
        row("1.weight", Norm, &[Hidden(2)]),
        row("1.bias", Norm, &[Hidden(2)]),
        row("3.weight", LinearWeight, &[Fixed(2), Hidden(2)]),
        row("3.bias", Bias, &[Fixed(2)]),
    ]
};

/// All groups, in the order in which the published program registers them. A head that writes stands before the
/// second direction in captioning models and behind it in pre-training ones, so `lm_score.` is here twice.
pub(super) const GROUPS: &[Group] = {
    use Axis::{ClipText, ClipTextPositions, Fixed, ImageTokens, Patch, TokenTypes};
    use ParamKind::{Embedding, Norm};
    use Presence::{Always, Causal, Free, Masked, Matching, Nlvr2, Ranking, ThreeStream, Vqa};
    const TYPES: &[Parameter] = &[row("weight", Embedding, &[TokenTypes, D])];
    const TWO_TYPES: &[Parameter] = &[row("weight", Embedding, &[Fixed(2), D])];
    const CLIP: &[Parameter] = &[row(
        "positional_embedding",
        Embedding,
        &[ClipTextPositions, ClipText],
    )];
    const VISUAL: &[Parameter] = &[
        row("class_embedding", Embedding, &[V]),
        row("positional_embedding", Embedding, &[ImageTokens, V]),
        row("conv1.weight", Embedding, &[V, Fixed(3), Patch, Patch]),
        row("ln_pre.weight", Norm, &[V]),
        row("ln_pre.bias", Norm, &[V]),
    ];
    &[
        group("cross_modal_text_transform.", TEXT_TRANSFORM, Always),
        group("cross_modal_image_transform.", IMAGE_TRANSFORM, Always),
        group("token_type_embeddings.", TYPES, Always),
        group("token_type_embeddings_flm.", TWO_TYPES, Always),
        group("vit_model.", CLIP, Always),
        group("vit_model.visual.", VISUAL, Always),
        blocks(
            IMAGE,
            group(
                "vit_model.visual.transformer.resblocks.",
                IMAGE_BLOCK,
                Always,
            ),
        ),
        group("vit_model.visual.ln_post.", NORM, Always),
        group("vit_model.ln_final.", CLIP_NORM, Always),
        group(EMBEDDINGS, TEXT_EMBEDDINGS, Always),
        blocks(
            TEXT,
            group("text_transformer.encoder.layer.", TEXT_BLOCK, Always),
        ),
        group("text_transformer.pooler.", TEXT_POOLER, Always),
        blocks(
            CROSS,
            group("cross_modal_text_layers.", CROSS_BLOCK, Always),
        ),
        alias(
            "cross_modal_text_layers.",
            blocks(CROSS, group("cross_modal_layers.", CROSS_BLOCK, Always)),
        ),
        group("cross_modal_image_pooler.", DENSE, Always),
        group("cross_modal_text_pooler.", DENSE, Always),
        group("mlm_score.", LANGUAGE_HEAD, Masked),
        group(HEAD, LANGUAGE_HEAD, Causal),
        alias(
            EMBEDDINGS,
            group(
                "text_transformer2.embeddings.",
                TEXT_EMBEDDINGS,
                ThreeStream,
            ),
        ),
        alias(
            "text_transformer.encoder.layer.",
            blocks(
                TEXT,
                group("text_transformer2.encoder.layer.", TEXT_BLOCK, ThreeStream),
            ),
        ),
        alias(
            "text_transformer.pooler.",
            group("text_transformer2.pooler.", TEXT_POOLER, ThreeStream),
        ),
        alias(
            "cross_modal_text_layers.",
            blocks(
                CROSS,
                group("cross_modal_text_layers_r.", CROSS_BLOCK, ThreeStream),
            ),
        ),
        alias(
            "cross_modal_text_transform.",
            group("cross_modal_text_transform_r.", TEXT_TRANSFORM, ThreeStream),
        ),
        alias(
            "cross_modal_text_transform.",
            group("cross_modal_text_transform_f.", TEXT_TRANSFORM, ThreeStream),
        ),
        group("cross_modal_text_pooler_f.", DENSE, ThreeStream),
        alias(
            EMBEDDINGS,
            group("fusion_token_embedding.", TEXT_EMBEDDINGS, ThreeStream),
        ),
        blocks(TOP, group("fusion_layers_top.", FUSION_BLOCK, ThreeStream)),
        blocks(
            BOTTOM,
            group("fusion_layers_bottom.", FUSION_BLOCK, ThreeStream),
        ),
        group("lm_type_embeddings.", TWO_TYPES, ThreeStream),
        group(HEAD, LANGUAGE_HEAD, Free),
        alias(HEAD, group("lm_score_r.", LANGUAGE_HEAD, Free)),
        alias(HEAD, group("lm_score_f.", LANGUAGE_HEAD, Free)),
        group("itm_score.", MATCHING_HEAD, Matching),
        group("itm_score_flm.", MATCHING_HEAD, Matching),
        group("vqa_classifier.", VQA_HEAD, Vqa),
        group("nlvr2_classifier.", NLVR2_HEAD, Nlvr2),
        group("rank_output.", RANKING_HEAD, Ranking),
    ]
};
