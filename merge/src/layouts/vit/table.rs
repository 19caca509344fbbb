//! The table of keys: one row a parameter, with its kind.

use crate::ParamKind;

use ParamKind::{Bias, Embedding, LinearWeight, Norm, Scale};

/// A parameter: the whole key, or, in a block, what follows the block's index.
pub(super) struct Parameter {
    /// The key.
    pub key: &'static str,
    /// Its kind.
    pub kind: ParamKind,
}

const fn row(key: &'static str, kind: ParamKind) -> Parameter {
    Parameter { key, kind }
}

/// The first part of blocks' keys.
pub(super) const BLOCKS: &str = "blocks.";
/// The table of positions.
pub(super) const POSITIONS: &str = "pos_embed";
/// The class token.
pub(super) const CLASS: &str = "cls_token";
/// Tokens that nothing is read off.
pub(super) const REGISTERS: &str = "reg_token";
/// The projection to patches.
pub(super) const PATCHES: &str = "patch_embed.proj.weight";
/// The norm after the last block.
pub(super) const NORM: &str = "norm.weight";
/// The norm of pooled tokens.
pub(super) const POOLED_NORM: &str = "fc_norm.weight";

/// Outside the blocks.
pub(super) const OUTER: &[Parameter] = &[
    row(CLASS, Embedding),
    row(REGISTERS, Embedding),
    row(POSITIONS, Embedding),
    row(PATCHES, Embedding),
    row("patch_embed.proj.bias", Bias),
    row("norm_pre.weight", Norm),
    row("norm_pre.bias", Norm),
    row(NORM, Norm),
    row("norm.bias", Norm),
    row(POOLED_NORM, Norm),
    row("fc_norm.bias", Norm),
    row("head.weight", LinearWeight),
    row("head.bias", Bias),
];

/// In a block. Files pack queries, keys and values; merges see them apart.
pub(super) const BLOCK: &[Parameter] = &[
    row("norm1.weight", Norm),
    row("norm1.bias", Norm),
    row("attn.qkv.weight", LinearWeight),
    row("attn.qkv.bias", Bias),
    row("attn.q_proj.weight", LinearWeight),
    row("attn.q_proj.bias", Bias),
    row("attn.k_proj.weight", LinearWeight),
    row("attn.k_proj.bias", Bias),
    row("attn.v_proj.weight", LinearWeight),
    row("attn.v_proj.bias", Bias),
    row("attn.proj.weight", LinearWeight),
    row("attn.proj.bias", Bias),
    row("ls1.gamma", Scale),
    row("norm2.weight", Norm),
    row("norm2.bias", Norm),
    row("mlp.fc1.weight", LinearWeight),
    row("mlp.fc1.bias", Bias),
    row("mlp.fc2.weight", LinearWeight),
    row("mlp.fc2.bias", Bias),
    row("ls2.gamma", Scale),
];
