//! SigLIP, as JAX's big_vision names its arrays in `.npz` files. Layers have numbers, or are the first axis of arrays that
//! hold all of them (`scan`), as in SigLIP 2.
//!
//! Sources: <https://github.com/google-research/big_vision>, `models/vit.py`, `models/proj/image_text/two_towers.py`,
//! `models/proj/image_text/text_transformer.py`.

use serde_json::json;

use super::row::Form::{Convolution, IntoHeads, OneMatrix, OutOfHeads, PerHead, Turned};
use super::row::{Row, row, same};
use super::{Naming, Placed, bare};
use crate::layouts::{ClipConfig, ModelRecord, RecordFamily};

/// The table. The head that pools pictures has queries, keys and values apart, which Hugging Face packs.
pub(super) const SIGLIP: Naming = Naming {
    whose: "big_vision's SigLIP",
    inner: bare,
    bases: &[("params/", ""), ("", "")],
    sign: "img/MAPHead_0/probe",
    rows: &ROWS,
    heads: &[],
    read_as_torch: None,
    left_out: &[],
    facts,
};

/// Heads of both towers, and what every published SigLIP has.
fn facts(placed: &[Placed<'_>]) -> Option<ModelRecord> {
    let heads = |tower: &str| {
        let mut queries = placed.iter().filter(|tensor| {
            tensor.to.starts_with(tower) && tensor.to.ends_with(".self_attn.q_proj.weight")
        });
        let shape = queries.next()?.info.shape.iter();
        // The last axes are heads and their width.
        shape.rev().nth(1).copied()
    };
    let usual = ClipConfig::of_hugging_face(&json!({ "model_type": "siglip" }), None);
    Some(ModelRecord {
        family: Some(RecordFamily::Clip),
        image_heads: Some(heads("vision_model.encoder.")?),
        text_heads: Some(heads("text_model.encoder.")?),
        clip: Some(usual.facts),
        ..ModelRecord::default()
    })
}

#[rustfmt::skip]
const ROWS: [Row; 60] = [
    row("img/embedding/kernel", "vision_model.embeddings.patch_embedding.weight", Convolution),
    same("img/embedding/bias", "vision_model.embeddings.patch_embedding.bias"),
    row("img/pos_embedding", "vision_model.embeddings.position_embedding.weight", OneMatrix),
    same("img/Transformer/encoderblock_{n}/LayerNorm_0/scale", "vision_model.encoder.layers.{n}.layer_norm1.weight"),
    same("img/Transformer/encoderblock_{n}/LayerNorm_0/bias", "vision_model.encoder.layers.{n}.layer_norm1.bias"),
    same("img/Transformer/encoderblock_{n}/LayerNorm_1/scale", "vision_model.encoder.layers.{n}.layer_norm2.weight"),
    same("img/Transformer/encoderblock_{n}/LayerNorm_1/bias", "vision_model.encoder.layers.{n}.layer_norm2.bias"),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/query/kernel", "vision_model.encoder.layers.{n}.self_attn.q_proj.weight", IntoHeads),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/query/bias", "vision_model.encoder.layers.{n}.self_attn.q_proj.bias", PerHead),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/key/kernel", "vision_model.encoder.layers.{n}.self_attn.k_proj.weight", IntoHeads),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/key/bias", "vision_model.encoder.layers.{n}.self_attn.k_proj.bias", PerHead),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/value/kernel", "vision_model.encoder.layers.{n}.self_attn.v_proj.weight", IntoHeads),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/value/bias", "vision_model.encoder.layers.{n}.self_attn.v_proj.bias", PerHead),
    row("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/out/kernel", "vision_model.encoder.layers.{n}.self_attn.out_proj.weight", OutOfHeads),
    same("img/Transformer/encoderblock_{n}/MultiHeadDotProductAttention_0/out/bias", "vision_model.encoder.layers.{n}.self_attn.out_proj.bias"),
    row("img/Transformer/encoderblock_{n}/MlpBlock_0/Dense_0/kernel", "vision_model.encoder.layers.{n}.mlp.fc1.weight", Turned),
    same("img/Transformer/encoderblock_{n}/MlpBlock_0/Dense_0/bias", "vision_model.encoder.layers.{n}.mlp.fc1.bias"),
    row("img/Transformer/encoderblock_{n}/MlpBlock_0/Dense_1/kernel", "vision_model.encoder.layers.{n}.mlp.fc2.weight", Turned),
    same("img/Transformer/encoderblock_{n}/MlpBlock_0/Dense_1/bias", "vision_model.encoder.layers.{n}.mlp.fc2.bias"),
    same("img/Transformer/encoder_norm/scale", "vision_model.post_layernorm.weight"),
    same("img/Transformer/encoder_norm/bias", "vision_model.post_layernorm.bias"),
    same("img/MAPHead_0/probe", "vision_model.head.probe"),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/query/kernel", "vision_model.head.attention.q_proj.weight", IntoHeads),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/query/bias", "vision_model.head.attention.q_proj.bias", PerHead),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/key/kernel", "vision_model.head.attention.k_proj.weight", IntoHeads),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/key/bias", "vision_model.head.attention.k_proj.bias", PerHead),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/value/kernel", "vision_model.head.attention.v_proj.weight", IntoHeads),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/value/bias", "vision_model.head.attention.v_proj.bias", PerHead),
    row("img/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel", "vision_model.head.attention.out_proj.weight", OutOfHeads),
    same("img/MAPHead_0/MultiHeadDotProductAttention_0/out/bias", "vision_model.head.attention.out_proj.bias"),
    same("img/MAPHead_0/LayerNorm_0/scale", "vision_model.head.layernorm.weight"),
    same("img/MAPHead_0/LayerNorm_0/bias", "vision_model.head.layernorm.bias"),
    row("img/MAPHead_0/MlpBlock_0/Dense_0/kernel", "vision_model.head.mlp.fc1.weight", Turned),
    same("img/MAPHead_0/MlpBlock_0/Dense_0/bias", "vision_model.head.mlp.fc1.bias"),
    row("img/MAPHead_0/MlpBlock_0/Dense_1/kernel", "vision_model.head.mlp.fc2.weight", Turned),
    same("img/MAPHead_0/MlpBlock_0/Dense_1/bias", "vision_model.head.mlp.fc2.bias"),
    same("txt/Embed_0/embedding", "text_model.embeddings.token_embedding.weight"),
    row("txt/pos_embedding", "text_model.embeddings.position_embedding.weight", OneMatrix),
    same("txt/Encoder_0/encoderblock_{n}/LayerNorm_0/scale", "text_model.encoder.layers.{n}.layer_norm1.weight"),
    same("txt/Encoder_0/encoderblock_{n}/LayerNorm_0/bias", "text_model.encoder.layers.{n}.layer_norm1.bias"),
    same("txt/Encoder_0/encoderblock_{n}/LayerNorm_1/scale", "text_model.encoder.layers.{n}.layer_norm2.weight"),
    same("txt/Encoder_0/encoderblock_{n}/LayerNorm_1/bias", "text_model.encoder.layers.{n}.layer_norm2.bias"),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/query/kernel", "text_model.encoder.layers.{n}.self_attn.q_proj.weight", IntoHeads),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/query/bias", "text_model.encoder.layers.{n}.self_attn.q_proj.bias", PerHead),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/key/kernel", "text_model.encoder.layers.{n}.self_attn.k_proj.weight", IntoHeads),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/key/bias", "text_model.encoder.layers.{n}.self_attn.k_proj.bias", PerHead),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/value/kernel", "text_model.encoder.layers.{n}.self_attn.v_proj.weight", IntoHeads),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/value/bias", "text_model.encoder.layers.{n}.self_attn.v_proj.bias", PerHead),
    row("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/out/kernel", "text_model.encoder.layers.{n}.self_attn.out_proj.weight", OutOfHeads),
    same("txt/Encoder_0/encoderblock_{n}/MultiHeadDotProductAttention_0/out/bias", "text_model.encoder.layers.{n}.self_attn.out_proj.bias"),
    row("txt/Encoder_0/encoderblock_{n}/MlpBlock_0/Dense_0/kernel", "text_model.encoder.layers.{n}.mlp.fc1.weight", Turned),
    same("txt/Encoder_0/encoderblock_{n}/MlpBlock_0/Dense_0/bias", "text_model.encoder.layers.{n}.mlp.fc1.bias"),
    row("txt/Encoder_0/encoderblock_{n}/MlpBlock_0/Dense_1/kernel", "text_model.encoder.layers.{n}.mlp.fc2.weight", Turned),
    same("txt/Encoder_0/encoderblock_{n}/MlpBlock_0/Dense_1/bias", "text_model.encoder.layers.{n}.mlp.fc2.bias"),
    same("txt/Encoder_0/encoder_norm/scale", "text_model.final_layer_norm.weight"),
    same("txt/Encoder_0/encoder_norm/bias", "text_model.final_layer_norm.bias"),
    row("txt/head/kernel", "text_model.head.weight", Turned),
    same("txt/head/bias", "text_model.head.bias"),
    same("t", "logit_scale"),
    same("b", "logit_bias"),
];
