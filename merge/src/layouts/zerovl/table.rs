//! The table of keys: one row a parameter, with its kind and its shape in a model's sizes.

use crate::ParamKind;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Width of the text tower.
    Text,
    /// Inner size of the text tower's FFN.
    TextFfn,
    /// Word pieces.
    Vocabulary,
    /// Text positions.
    TextPositions,
    /// Rows of the token type table.
    TokenTypes,
    /// Width of the joint space.
    Joint,
    /// Classes of images.
    Classes,
}

/// A parameter: the whole key, or, in a block, what follows the block's index.
#[derive(Debug)]
pub(super) struct Parameter {
    /// The key.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// Whether published checkpoints have it always.
    pub presence: Presence,
    /// Its shape.
    pub shape: &'static [Axis],
}

/// The checkpoints that hold a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// All.
    Always,
    /// Those with a learned temperature.
    LearnedTemperature,
    /// Those that a linear probe was trained on.
    Probed,
    /// None that ZeroVL writes; BERT models of transformers have it, and its loader only warns.
    Foreign,
}

/// A tower's blocks.
#[derive(Debug)]
pub(super) struct TowerBlocks {
    /// The stack's name.
    pub name: &'static str,
    /// The text before the block's index.
    pub prefix: &'static str,
    /// The parameters of a block.
    pub parameters: &'static [Parameter],
}

/// The first part of the image tower's keys.
pub(super) const IMAGE: &str = "image_encoder.";
/// The first part of the text tower's keys.
pub(super) const TEXT: &str = "text_encoder.";
/// Class and image positions, `(1, tokens, d)`.
pub(super) const POSITIONS: &str = "image_encoder.model.model.pos_embed";
/// The temperature, a divisor of logits.
pub(super) const TEMPERATURE: &str = "loss.temperature";
/// The first part of a linear probe's keys: a classifier of images on the class token. The name is ours, for the
/// published program keeps it in no file of its own.
pub(super) const PROBE: &str = "linear_probe.";
/// A buffer that transformers up to 4.30 keeps.
pub(super) const POSITION_IDS: &str = "text_encoder.model.model.embeddings.position_ids";

const fn row(key: &'static str, kind: ParamKind, shape: &'static [Axis]) -> Parameter {
    Parameter {
        key,
        kind,
        presence: Presence::Always,
        shape,
    }
}

const fn rare(
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

const V: Axis = Axis::Image(1);
const T: Axis = Axis::Text;

/// The stacks of blocks, in the order of their indices.
#[rustfmt::skip] // a table: one row a line
pub(super) const STACKS: &[TowerBlocks] = {
    use Axis::{Image, ImageFfn, TextFfn};
    use ParamKind::{Bias, LinearWeight, Norm};
    &[
        TowerBlocks {
            name: "image",
            prefix: "image_encoder.model.model.blocks.",
            parameters: &[
                row("norm1.weight", Norm, &[V]),
                row("norm1.bias", Norm, &[V]),
                row("attn.qkv.weight", LinearWeight, &[Image(3), V]),
                row("attn.qkv.bias", Bias, &[Image(3)]),
                row("attn.proj.weight", LinearWeight, &[V, V]),
                row("attn.proj.bias", Bias, &[V]),
                row("norm2.weight", Norm, &[V]),
                row("norm2.bias", Norm, &[V]),
                row("mlp.fc1.weight", LinearWeight, &[ImageFfn, V]),
                row("mlp.fc1.bias", Bias, &[ImageFfn]),
                row("mlp.fc2.weight", LinearWeight, &[V, ImageFfn]),
                row("mlp.fc2.bias", Bias, &[V]),
            ],
        },
        TowerBlocks {
            name: "text",
            prefix: "text_encoder.model.model.encoder.layer.",
            parameters: &[
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
            ],
        },
    ]
};

/// Every parameter outside the blocks.
#[rustfmt::skip] // a table: one row a line
pub(super) const OUTER: &[Parameter] = {
    use Axis::{Classes, Fixed, ImageTokens, Joint, Patch, TextPositions, TokenTypes, Vocabulary};
    use ParamKind::{Bias, Embedding, LinearWeight, Norm, Scale};
    use Presence::{Foreign, LearnedTemperature, Probed};
    &[
        row("image_encoder.model.model.cls_token", Embedding, &[Fixed(1), Fixed(1), V]),
        row(POSITIONS, Embedding, &[Fixed(1), ImageTokens, V]),
        row("image_encoder.model.model.patch_embed.proj.weight", Embedding, &[V, Fixed(3), Patch, Patch]),
        row("image_encoder.model.model.patch_embed.proj.bias", Bias, &[V]),
        row("image_encoder.model.model.norm.weight", Norm, &[V]),
        row("image_encoder.model.model.norm.bias", Norm, &[V]),
        row("text_encoder.model.model.embeddings.word_embeddings.weight", Embedding, &[Vocabulary, T]),
        row("text_encoder.model.model.embeddings.position_embeddings.weight", Embedding, &[TextPositions, T]),
        row("text_encoder.model.model.embeddings.token_type_embeddings.weight", Embedding, &[TokenTypes, T]),
        row("text_encoder.model.model.embeddings.LayerNorm.weight", Norm, &[T]),
        row("text_encoder.model.model.embeddings.LayerNorm.bias", Norm, &[T]),
        rare("text_encoder.model.model.pooler.dense.weight", LinearWeight, Foreign, &[T, T]),
        rare("text_encoder.model.model.pooler.dense.bias", Bias, Foreign, &[T]),
        row("image_projection.linear.weight", LinearWeight, &[Joint, V]),
        row("text_projection.linear.weight", LinearWeight, &[Joint, T]),
        rare(TEMPERATURE, Scale, LearnedTemperature, &[]),
        rare("linear_probe.weight", LinearWeight, Probed, &[Classes, V]),
        rare("linear_probe.bias", Bias, Probed, &[Classes]),
    ]
};
