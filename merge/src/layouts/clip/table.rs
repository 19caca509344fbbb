//! The table of keys: one row a parameter, with its kind, its shape in a model's sizes, and its name in
//! each spelling. The first name is the one that merges see: Hugging Face's, with queries, keys and values apart.

use crate::ParamKind;

/// Length of an axis, in the sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// The same in every model.
    Fixed(usize),
    /// Width of the tower.
    Width,
    /// Inner size of the tower's FFN.
    Ffn,
    /// Side of a patch in pixels.
    Patch,
    /// Rows of the tower's position table.
    Positions,
    /// Tokens.
    Vocabulary,
    /// Width of the joint space.
    Joint,
    /// Classes of images.
    Classes,
}

/// The models that hold a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// All.
    Always,
    /// CLIPs.
    Clip,
    /// SigLIPs.
    Siglip,
    /// Those that were fine-tuned to classify images.
    Classifying,
}

/// The name of a parameter in a spelling, without the prefix of its tower or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The spelling has no such parameter.
    None,
    /// The same tensor, except for axes of length 1.
    Is(&'static str),
    /// The transpose of a matrix.
    Turned(&'static str),
    /// Rows of a tensor that holds several parameters one after the other: the number of the first part, and of all
    /// parts.
    Part(&'static str, usize, usize),
}

/// A parameter.
#[derive(Debug)]
pub(super) struct Parameter {
    /// The rest of its key in a merge, after the prefix of its tower or block.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
    /// The models that hold it.
    pub presence: Presence,
    /// Its shape.
    pub shape: &'static [Axis],
    /// Its name at Hugging Face.
    pub hugging_face: Name,
    /// Its name in open_clip's own towers.
    pub open_clip: Name,
    /// Its name in timm's image tower.
    pub timm: Name,
}

/// Parameters whose keys begin alike.
#[derive(Debug)]
pub(super) struct Group {
    /// The stack that the parameters belong to.
    pub tower: Tower,
    /// Whether the number of a block stands behind the prefix.
    pub is_of_blocks: bool,
    /// The first part of keys in Hugging Face's spelling.
    pub hugging_face: &'static str,
    /// The first part of keys in open_clip's own towers, `text.` left out.
    pub open_clip: &'static str,
    /// The first part of keys where the image tower is timm's.
    pub timm: &'static str,
    /// The parameters.
    pub parameters: &'static [Parameter],
}

/// The part of the model that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tower {
    /// The image tower.
    Image,
    /// The text tower.
    Text,
    /// Scale and bias of similarities.
    Both,
}

impl Tower {
    /// Its stack of blocks.
    pub(super) const fn stack(self) -> u8 {
        match self {
            Self::Image => 0,
            Self::Text | Self::Both => 1,
        }
    }
}

/// Names of the stacks of blocks, in the order of their indices.
pub(super) const STACKS: [&str; 2] = ["image", "text"];

/// The table of image positions.
pub(super) const IMAGE_POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";
/// The table of text positions.
pub(super) const TEXT_POSITIONS: &str = "text_model.embeddings.position_embedding.weight";
/// The class token, which only CLIPs have.
pub(super) const CLASS: &str = "vision_model.embeddings.class_embedding";
/// The projection to patches.
pub(super) const PATCHES: &str = "vision_model.embeddings.patch_embedding.weight";
/// The token embedding.
pub(super) const TOKENS: &str = "text_model.embeddings.token_embedding.weight";
/// The logarithm of the factor of similarities.
pub(super) const SCALE: &str = "logit_scale";
/// The number added to similarities, of SigLIPs.
pub(super) const BIAS: &str = "logit_bias";
/// A classifier of images on their features.
pub(super) const CLASSIFIER: &str = "classifier.weight";
/// The projections into the joint space: of images and texts in CLIPs, of texts in SigLIPs.
pub(super) const PROJECTIONS: [&str; 3] = [
    "visual_projection.weight",
    "text_projection.weight",
    "text_model.head.weight",
];

/// Buffers that loaders rebuild: those of older Hugging Face files, of older open_clip files and of OpenAI's archives.
pub(super) const BUFFERS: [&str; 6] = [
    "vision_model.embeddings.position_ids",
    "text_model.embeddings.position_ids",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
];

/// Buffers that the archives which OpenAI published keep beside the weights, and no other program.
pub(super) const OF_ARCHIVES: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

use Axis::{Classes, Ffn, Fixed, Joint, Patch, Positions, Vocabulary, Width};
use Name::{Is, Part, Turned};
use ParamKind::{Bias, Embedding, LinearWeight, Norm, Scale};
use Presence::{Always, Classifying, Clip, Siglip};

const fn row(
    key: &'static str,
    kind: ParamKind,
    shape: &'static [Axis],
    open_clip: Name,
    timm: Name,
) -> Parameter {
    Parameter {
        key,
        kind,
        presence: Always,
        shape,
        hugging_face: Is(key),
        open_clip,
        timm,
    }
}

const fn only(presence: Presence, parameter: Parameter) -> Parameter {
    Parameter {
        presence,
        ..parameter
    }
}

const fn packed(hugging_face: Name, parameter: Parameter) -> Parameter {
    Parameter {
        hugging_face,
        ..parameter
    }
}

/// A block of either tower: timm's names are those of the image tower.
#[rustfmt::skip] // a table: one row a line
const BLOCK: &[Parameter] = &[
    row("self_attn.q_proj.weight", LinearWeight, &[Width, Width], Part("attn.in_proj_weight", 0, 3), Part("attn.qkv.weight", 0, 3)),
    row("self_attn.q_proj.bias", Bias, &[Width], Part("attn.in_proj_bias", 0, 3), Part("attn.qkv.bias", 0, 3)),
    row("self_attn.k_proj.weight", LinearWeight, &[Width, Width], Part("attn.in_proj_weight", 1, 3), Part("attn.qkv.weight", 1, 3)),
    row("self_attn.k_proj.bias", Bias, &[Width], Part("attn.in_proj_bias", 1, 3), Part("attn.qkv.bias", 1, 3)),
    row("self_attn.v_proj.weight", LinearWeight, &[Width, Width], Part("attn.in_proj_weight", 2, 3), Part("attn.qkv.weight", 2, 3)),
    row("self_attn.v_proj.bias", Bias, &[Width], Part("attn.in_proj_bias", 2, 3), Part("attn.qkv.bias", 2, 3)),
    row("self_attn.out_proj.weight", LinearWeight, &[Width, Width], Is("attn.out_proj.weight"), Is("attn.proj.weight")),
    row("self_attn.out_proj.bias", Bias, &[Width], Is("attn.out_proj.bias"), Is("attn.proj.bias")),
    row("layer_norm1.weight", Norm, &[Width], Is("ln_1.weight"), Is("norm1.weight")),
    row("layer_norm1.bias", Norm, &[Width], Is("ln_1.bias"), Is("norm1.bias")),
    row("layer_norm2.weight", Norm, &[Width], Is("ln_2.weight"), Is("norm2.weight")),
    row("layer_norm2.bias", Norm, &[Width], Is("ln_2.bias"), Is("norm2.bias")),
    row("mlp.fc1.weight", LinearWeight, &[Ffn, Width], Is("mlp.c_fc.weight"), Is("mlp.fc1.weight")),
    row("mlp.fc1.bias", Bias, &[Ffn], Is("mlp.c_fc.bias"), Is("mlp.fc1.bias")),
    row("mlp.fc2.weight", LinearWeight, &[Width, Ffn], Is("mlp.c_proj.weight"), Is("mlp.fc2.weight")),
    row("mlp.fc2.bias", Bias, &[Width], Is("mlp.c_proj.bias"), Is("mlp.fc2.bias")),
];

#[rustfmt::skip] // a table: one row a line
const IMAGE: &[Parameter] = &[
    only(Clip, row("embeddings.class_embedding", Embedding, &[Width], Is("class_embedding"), Name::None)),
    row("embeddings.patch_embedding.weight", Embedding, &[Width, Fixed(3), Patch, Patch], Is("conv1.weight"), Is("patch_embed.proj.weight")),
    only(Siglip, row("embeddings.patch_embedding.bias", Bias, &[Width], Name::None, Is("patch_embed.proj.bias"))),
    row("embeddings.position_embedding.weight", Embedding, &[Positions, Width], Is("positional_embedding"), Is("pos_embed")),
    only(Clip, row("pre_layrnorm.weight", Norm, &[Width], Is("ln_pre.weight"), Name::None)),
    only(Clip, row("pre_layrnorm.bias", Norm, &[Width], Is("ln_pre.bias"), Name::None)),
    row("post_layernorm.weight", Norm, &[Width], Is("ln_post.weight"), Is("norm.weight")),
    row("post_layernorm.bias", Norm, &[Width], Is("ln_post.bias"), Is("norm.bias")),
];

/// The head that pools the patches of a SigLIP by attention.
#[rustfmt::skip] // a table: one row a line
const POOL: &[Parameter] = &[
    only(Siglip, row("probe", Embedding, &[Fixed(1), Fixed(1), Width], Name::None, Is("latent"))),
    only(Siglip, packed(Part("attention.in_proj_weight", 0, 3), row("attention.q_proj.weight", LinearWeight, &[Width, Width], Name::None, Is("q.weight")))),
    only(Siglip, packed(Part("attention.in_proj_bias", 0, 3), row("attention.q_proj.bias", Bias, &[Width], Name::None, Is("q.bias")))),
    only(Siglip, packed(Part("attention.in_proj_weight", 1, 3), row("attention.k_proj.weight", LinearWeight, &[Width, Width], Name::None, Part("kv.weight", 0, 2)))),
    only(Siglip, packed(Part("attention.in_proj_bias", 1, 3), row("attention.k_proj.bias", Bias, &[Width], Name::None, Part("kv.bias", 0, 2)))),
    only(Siglip, packed(Part("attention.in_proj_weight", 2, 3), row("attention.v_proj.weight", LinearWeight, &[Width, Width], Name::None, Part("kv.weight", 1, 2)))),
    only(Siglip, packed(Part("attention.in_proj_bias", 2, 3), row("attention.v_proj.bias", Bias, &[Width], Name::None, Part("kv.bias", 1, 2)))),
    only(Siglip, row("attention.out_proj.weight", LinearWeight, &[Width, Width], Name::None, Is("proj.weight"))),
    only(Siglip, row("attention.out_proj.bias", Bias, &[Width], Name::None, Is("proj.bias"))),
    only(Siglip, row("layernorm.weight", Norm, &[Width], Name::None, Is("norm.weight"))),
    only(Siglip, row("layernorm.bias", Norm, &[Width], Name::None, Is("norm.bias"))),
    only(Siglip, row("mlp.fc1.weight", LinearWeight, &[Ffn, Width], Name::None, Is("mlp.fc1.weight"))),
    only(Siglip, row("mlp.fc1.bias", Bias, &[Ffn], Name::None, Is("mlp.fc1.bias"))),
    only(Siglip, row("mlp.fc2.weight", LinearWeight, &[Width, Ffn], Name::None, Is("mlp.fc2.weight"))),
    only(Siglip, row("mlp.fc2.bias", Bias, &[Width], Name::None, Is("mlp.fc2.bias"))),
];

#[rustfmt::skip] // a table: one row a line
const TEXT: &[Parameter] = &[
    row("text_model.embeddings.token_embedding.weight", Embedding, &[Vocabulary, Width], Is("token_embedding.weight"), Is("token_embedding.weight")),
    row(TEXT_POSITIONS, Embedding, &[Positions, Width], Is("positional_embedding"), Is("positional_embedding")),
    row("text_model.final_layer_norm.weight", Norm, &[Width], Is("ln_final.weight"), Is("ln_final.weight")),
    row("text_model.final_layer_norm.bias", Norm, &[Width], Is("ln_final.bias"), Is("ln_final.bias")),
    only(Clip, row("text_projection.weight", LinearWeight, &[Joint, Width], Turned("text_projection"), Name::None)),
    only(Siglip, row("text_model.head.weight", LinearWeight, &[Joint, Width], Name::None, Is("text_projection.weight"))),
    only(Siglip, row("text_model.head.bias", Bias, &[Joint], Name::None, Is("text_projection.bias"))),
];

/// All groups. A SigLIP's keys in open_clip's spelling are those with timm's image tower.
pub(super) const GROUPS: &[Group] = &[
    Group {
        tower: Tower::Image,
        is_of_blocks: false,
        hugging_face: "vision_model.",
        open_clip: "visual.",
        timm: "visual.trunk.",
        parameters: IMAGE,
    },
    Group {
        tower: Tower::Image,
        is_of_blocks: true,
        hugging_face: "vision_model.encoder.layers.",
        open_clip: "visual.transformer.resblocks.",
        timm: "visual.trunk.blocks.",
        parameters: BLOCK,
    },
    Group {
        tower: Tower::Image,
        is_of_blocks: false,
        hugging_face: "vision_model.head.",
        open_clip: "",
        timm: "visual.trunk.attn_pool.",
        parameters: POOL,
    },
    Group {
        tower: Tower::Image,
        is_of_blocks: false,
        hugging_face: "",
        open_clip: "visual.",
        timm: "",
        parameters: &[only(
            Clip,
            row(
                "visual_projection.weight",
                LinearWeight,
                &[Joint, Width],
                Turned("proj"),
                Name::None,
            ),
        )],
    },
    Group {
        tower: Tower::Text,
        is_of_blocks: false,
        hugging_face: "",
        open_clip: "",
        timm: "",
        parameters: TEXT,
    },
    Group {
        tower: Tower::Text,
        is_of_blocks: true,
        hugging_face: "text_model.encoder.layers.",
        open_clip: "transformer.resblocks.",
        timm: "transformer.resblocks.",
        parameters: BLOCK,
    },
    Group {
        tower: Tower::Both,
        is_of_blocks: false,
        hugging_face: "",
        open_clip: "",
        timm: "",
        parameters: &[
            row(SCALE, Scale, &[], Is(SCALE), Is(SCALE)),
            only(Siglip, row(BIAS, Scale, &[], Is(BIAS), Is(BIAS))),
            // The name is ours, because no library keeps it with the model.
            only(
                Classifying,
                row(
                    CLASSIFIER,
                    LinearWeight,
                    &[Classes, Joint],
                    Is(CLASSIFIER),
                    Is(CLASSIFIER),
                ),
            ),
        ],
    },
];
