//! CLIP, as transformers' TensorFlow classes name its variables.
//!
//! Source: transformers' `modeling_tf_clip.py`.

use super::row::Form::{Convolution, One, Turned};
use super::row::{Row, row, same};
use super::{Naming, of_keras};

/// The classes, in files of Keras. Their names are those of torch except for the last parts.
pub(super) const KERAS: Naming = Naming {
    whose: "transformers' TensorFlow CLIP",
    inner: of_keras,
    bases: &[("clip/", "")],
    sign: "text_model/encoder/layers_0/self_attn/q_proj/kernel",
    rows: &ROWS,
    heads: &[],
    read_as_torch: None,
    left_out: &[],
    facts: |_| None,
};

#[rustfmt::skip]
const ROWS: [Row; 46] = [
    same("vision_model/embeddings/class_embedding", "vision_model.embeddings.class_embedding"),
    row("vision_model/embeddings/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", Convolution),
    same("vision_model/embeddings/position_embedding/embeddings", "vision_model.embeddings.position_embedding.weight"),
    same("vision_model/pre_layrnorm/gamma", "vision_model.pre_layrnorm.weight"),
    same("vision_model/pre_layrnorm/beta", "vision_model.pre_layrnorm.bias"),
    row("vision_model/encoder/layers_{n}/self_attn/q_proj/kernel", "vision_model.encoder.layers.{n}.self_attn.q_proj.weight", Turned),
    same("vision_model/encoder/layers_{n}/self_attn/q_proj/bias", "vision_model.encoder.layers.{n}.self_attn.q_proj.bias"),
    row("vision_model/encoder/layers_{n}/self_attn/k_proj/kernel", "vision_model.encoder.layers.{n}.self_attn.k_proj.weight", Turned),
    same("vision_model/encoder/layers_{n}/self_attn/k_proj/bias", "vision_model.encoder.layers.{n}.self_attn.k_proj.bias"),
    row("vision_model/encoder/layers_{n}/self_attn/v_proj/kernel", "vision_model.encoder.layers.{n}.self_attn.v_proj.weight", Turned),
    same("vision_model/encoder/layers_{n}/self_attn/v_proj/bias", "vision_model.encoder.layers.{n}.self_attn.v_proj.bias"),
    row("vision_model/encoder/layers_{n}/self_attn/out_proj/kernel", "vision_model.encoder.layers.{n}.self_attn.out_proj.weight", Turned),
    same("vision_model/encoder/layers_{n}/self_attn/out_proj/bias", "vision_model.encoder.layers.{n}.self_attn.out_proj.bias"),
    row("vision_model/encoder/layers_{n}/mlp/fc1/kernel", "vision_model.encoder.layers.{n}.mlp.fc1.weight", Turned),
    same("vision_model/encoder/layers_{n}/mlp/fc1/bias", "vision_model.encoder.layers.{n}.mlp.fc1.bias"),
    row("vision_model/encoder/layers_{n}/mlp/fc2/kernel", "vision_model.encoder.layers.{n}.mlp.fc2.weight", Turned),
    same("vision_model/encoder/layers_{n}/mlp/fc2/bias", "vision_model.encoder.layers.{n}.mlp.fc2.bias"),
    same("vision_model/encoder/layers_{n}/layer_norm1/gamma", "vision_model.encoder.layers.{n}.layer_norm1.weight"),
    same("vision_model/encoder/layers_{n}/layer_norm1/beta", "vision_model.encoder.layers.{n}.layer_norm1.bias"),
    same("vision_model/encoder/layers_{n}/layer_norm2/gamma", "vision_model.encoder.layers.{n}.layer_norm2.weight"),
    same("vision_model/encoder/layers_{n}/layer_norm2/beta", "vision_model.encoder.layers.{n}.layer_norm2.bias"),
    same("vision_model/post_layernorm/gamma", "vision_model.post_layernorm.weight"),
    same("vision_model/post_layernorm/beta", "vision_model.post_layernorm.bias"),
    same("text_model/embeddings/token_embedding/weight", "text_model.embeddings.token_embedding.weight"),
    same("text_model/embeddings/position_embedding/embeddings", "text_model.embeddings.position_embedding.weight"),
    row("text_model/encoder/layers_{n}/self_attn/q_proj/kernel", "text_model.encoder.layers.{n}.self_attn.q_proj.weight", Turned),
    same("text_model/encoder/layers_{n}/self_attn/q_proj/bias", "text_model.encoder.layers.{n}.self_attn.q_proj.bias"),
    row("text_model/encoder/layers_{n}/self_attn/k_proj/kernel", "text_model.encoder.layers.{n}.self_attn.k_proj.weight", Turned),
    same("text_model/encoder/layers_{n}/self_attn/k_proj/bias", "text_model.encoder.layers.{n}.self_attn.k_proj.bias"),
    row("text_model/encoder/layers_{n}/self_attn/v_proj/kernel", "text_model.encoder.layers.{n}.self_attn.v_proj.weight", Turned),
    same("text_model/encoder/layers_{n}/self_attn/v_proj/bias", "text_model.encoder.layers.{n}.self_attn.v_proj.bias"),
    row("text_model/encoder/layers_{n}/self_attn/out_proj/kernel", "text_model.encoder.layers.{n}.self_attn.out_proj.weight", Turned),
    same("text_model/encoder/layers_{n}/self_attn/out_proj/bias", "text_model.encoder.layers.{n}.self_attn.out_proj.bias"),
    row("text_model/encoder/layers_{n}/mlp/fc1/kernel", "text_model.encoder.layers.{n}.mlp.fc1.weight", Turned),
    same("text_model/encoder/layers_{n}/mlp/fc1/bias", "text_model.encoder.layers.{n}.mlp.fc1.bias"),
    row("text_model/encoder/layers_{n}/mlp/fc2/kernel", "text_model.encoder.layers.{n}.mlp.fc2.weight", Turned),
    same("text_model/encoder/layers_{n}/mlp/fc2/bias", "text_model.encoder.layers.{n}.mlp.fc2.bias"),
    same("text_model/encoder/layers_{n}/layer_norm1/gamma", "text_model.encoder.layers.{n}.layer_norm1.weight"),
    same("text_model/encoder/layers_{n}/layer_norm1/beta", "text_model.encoder.layers.{n}.layer_norm1.bias"),
    same("text_model/encoder/layers_{n}/layer_norm2/gamma", "text_model.encoder.layers.{n}.layer_norm2.weight"),
    same("text_model/encoder/layers_{n}/layer_norm2/beta", "text_model.encoder.layers.{n}.layer_norm2.bias"),
    same("text_model/final_layer_norm/gamma", "text_model.final_layer_norm.weight"),
    same("text_model/final_layer_norm/beta", "text_model.final_layer_norm.bias"),
    row("visual_projection/kernel", "visual_projection.weight", Turned),
    row("text_projection/kernel", "text_projection.weight", Turned),
    row("logit_scale", "logit_scale", One),
];
