//! The forms of vision transformers: whose names they have, and the numbers that their weights do not tell.

use crate::nn::Activation;

/// The forms of vision transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// timm's.
    #[default]
    Timm,
    /// CLIP's.
    Clip,
}

/// Names of its weights under the prefix of the tower, or of a block.
pub(super) struct Names {
    pub patches: &'static str,
    pub class: &'static str,
    pub positions: &'static str,
    /// The norm before the first block.
    pub pre_norm: &'static str,
    /// Before the number of a block.
    pub block: &'static str,
    /// Before attention and before the FFN.
    pub norms: [&'static str; 2],
    /// Packed projections within `attn`: weight and bias.
    pub qkv: [&'static str; 2],
    /// The name of their gram matrix.
    pub qkv_gram: &'static str,
    pub proj: &'static str,
    pub fc: [&'static str; 2],
    /// After the last block.
    pub norm: &'static str,
}

const TIMM: Names = Names {
    patches: "patch_embed.proj",
    class: "cls_token",
    positions: "pos_embed",
    pre_norm: "norm_pre",
    block: "blocks.",
    norms: ["norm1", "norm2"],
    qkv: ["qkv.weight", "qkv.bias"],
    qkv_gram: "qkv",
    proj: "proj",
    fc: ["mlp.fc1", "mlp.fc2"],
    norm: "norm",
};

const CLIP: Names = Names {
    patches: "conv1",
    class: "class_embedding",
    positions: "positional_embedding",
    pre_norm: "ln_pre",
    block: "transformer.resblocks.",
    norms: ["ln_1", "ln_2"],
    qkv: ["in_proj_weight", "in_proj_bias"],
    qkv_gram: "in_proj",
    proj: "out_proj",
    fc: ["mlp.c_fc", "mlp.c_proj"],
    norm: "ln_post",
};

impl Form {
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Timm => &TIMM,
            Self::Clip => &CLIP,
        }
    }

    /// The number that every LayerNorm adds to the variance.
    pub(super) fn epsilon(self) -> f64 {
        match self {
            Self::Timm => 1e-6,
            Self::Clip => 1e-5,
        }
    }

    pub(super) fn activation(self) -> Activation {
        match self {
            Self::Timm => Activation::Gelu,
            Self::Clip => Activation::QuickGelu,
        }
    }

    pub(super) fn has_patch_bias(self) -> bool {
        self == Self::Timm
    }

    /// Whether the class token is a vector and the position table a matrix, without axes of one.
    pub(super) fn has_bare_tables(self) -> bool {
        self == Self::Clip
    }
}
