//! BERT, as Google's TensorFlow program names its variables, and as transformers' TensorFlow and Flax classes do.
//!
//! Sources: <https://github.com/google-research/bert>, `modeling.py`, `run_classifier.py`, `run_squad.py`; transformers'
//! `modeling_tf_bert.py` and `modeling_flax_bert.py`.

use super::row::{Form::Turned, Row, row, same};
use super::{Naming, bare, of_keras};
use crate::io::Container;

/// Google's BERT, whose arrays are those of a TensorFlow checkpoint in an archive of NumPy.
pub(super) const GOOGLE: Naming = Naming {
    whose: "Google's BERT of TensorFlow",
    inner: bare,
    bases: &[("bert/", "bert.")],
    sign: "encoder/layer_0/attention/self/query/kernel",
    rows: &BODY,
    heads: &HEADS,
    read_as_torch: None,
    left_out: &["/adam_m", "/adam_v", "global_step"],
    facts: |_| None,
};

/// transformers' TensorFlow classes, in files of Keras.
pub(super) const KERAS: Naming = Naming {
    whose: "transformers' TensorFlow BERT",
    inner: of_keras,
    left_out: &[],
    ..GOOGLE
};

/// transformers' Flax classes, whose files are read under the names of torch.
pub(super) const FLAX: Naming = Naming {
    whose: "Flax's BERT",
    bases: &[("bert.", "bert."), ("", "")],
    sign: "encoder.layer.0.attention.self.query.weight",
    read_as_torch: Some(Container::Flax),
    left_out: &[],
    ..GOOGLE
};

/// The names of the model.
#[rustfmt::skip]
const BODY: [Row; 26] = [
    same("embeddings/word_embeddings", "embeddings.word_embeddings.weight"),
    same("embeddings/position_embeddings", "embeddings.position_embeddings.weight"),
    same("embeddings/token_type_embeddings", "embeddings.token_type_embeddings.weight"),
    same("embeddings/word_embeddings/weight", "embeddings.word_embeddings.weight"),
    same("embeddings/position_embeddings/embeddings", "embeddings.position_embeddings.weight"),
    same("embeddings/token_type_embeddings/embeddings", "embeddings.token_type_embeddings.weight"),
    same("embeddings/LayerNorm/gamma", "embeddings.LayerNorm.weight"),
    same("embeddings/LayerNorm/beta", "embeddings.LayerNorm.bias"),
    row("encoder/layer_{n}/attention/self/query/kernel", "encoder.layer.{n}.attention.self.query.weight", Turned),
    same("encoder/layer_{n}/attention/self/query/bias", "encoder.layer.{n}.attention.self.query.bias"),
    row("encoder/layer_{n}/attention/self/key/kernel", "encoder.layer.{n}.attention.self.key.weight", Turned),
    same("encoder/layer_{n}/attention/self/key/bias", "encoder.layer.{n}.attention.self.key.bias"),
    row("encoder/layer_{n}/attention/self/value/kernel", "encoder.layer.{n}.attention.self.value.weight", Turned),
    same("encoder/layer_{n}/attention/self/value/bias", "encoder.layer.{n}.attention.self.value.bias"),
    row("encoder/layer_{n}/attention/output/dense/kernel", "encoder.layer.{n}.attention.output.dense.weight", Turned),
    same("encoder/layer_{n}/attention/output/dense/bias", "encoder.layer.{n}.attention.output.dense.bias"),
    same("encoder/layer_{n}/attention/output/LayerNorm/gamma", "encoder.layer.{n}.attention.output.LayerNorm.weight"),
    same("encoder/layer_{n}/attention/output/LayerNorm/beta", "encoder.layer.{n}.attention.output.LayerNorm.bias"),
    row("encoder/layer_{n}/intermediate/dense/kernel", "encoder.layer.{n}.intermediate.dense.weight", Turned),
    same("encoder/layer_{n}/intermediate/dense/bias", "encoder.layer.{n}.intermediate.dense.bias"),
    row("encoder/layer_{n}/output/dense/kernel", "encoder.layer.{n}.output.dense.weight", Turned),
    same("encoder/layer_{n}/output/dense/bias", "encoder.layer.{n}.output.dense.bias"),
    same("encoder/layer_{n}/output/LayerNorm/gamma", "encoder.layer.{n}.output.LayerNorm.weight"),
    same("encoder/layer_{n}/output/LayerNorm/beta", "encoder.layer.{n}.output.LayerNorm.bias"),
    row("pooler/dense/kernel", "pooler.dense.weight", Turned),
    same("pooler/dense/bias", "pooler.dense.bias"),
];

/// Heads. Google's program keeps those of its tasks as `(out, in)`.
#[rustfmt::skip]
const HEADS: [Row; 19] = [
    same("cls/predictions/output_bias", "cls.predictions.bias"),
    same("cls/predictions/bias", "cls.predictions.bias"),
    row("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", Turned),
    same("cls/predictions/transform/dense/bias", "cls.predictions.transform.dense.bias"),
    same("cls/predictions/transform/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight"),
    same("cls/predictions/transform/LayerNorm/beta", "cls.predictions.transform.LayerNorm.bias"),
    row("cls/predictions/decoder/kernel", "cls.predictions.decoder.weight", Turned),
    same("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
    same("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
    row("cls/seq_relationship/kernel", "cls.seq_relationship.weight", Turned),
    same("cls/seq_relationship/bias", "cls.seq_relationship.bias"),
    same("output_weights", "classifier.weight"),
    same("output_bias", "classifier.bias"),
    row("classifier/kernel", "classifier.weight", Turned),
    same("classifier/bias", "classifier.bias"),
    same("cls/squad/output_weights", "qa_outputs.weight"),
    same("cls/squad/output_bias", "qa_outputs.bias"),
    row("qa_outputs/kernel", "qa_outputs.weight", Turned),
    same("qa_outputs/bias", "qa_outputs.bias"),
];
