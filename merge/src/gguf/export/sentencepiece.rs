//! A vocabulary of SentencePiece, as `tokenizer.model` has it.
//!
//! Source: `sentencepiece_model.proto` of SentencePiece.

use std::path::Path;

use serde_json::Value;

use super::tokenizer::{CONTROL, NORMAL, Tokens, USER_DEFINED, looks_special};
use crate::io::GgufHead;
use crate::io::protobuf::{Field, Fields};
use crate::{ExportFault, Result};

/// Fields of `ModelProto`.
const PIECES: u64 = 1;
const TRAINER: u64 = 2;
const NORMALIZER: u64 = 3;

/// The kind of model that joins pairs by their scores, in field 3 of `TrainerSpec`; without it, it is another.
const MODEL_TYPE: u64 = 3;
const BPE: u64 = 2;

/// Whether a space goes before a text, in field 3 of `NormalizerSpec`.
const ADD_PREFIX: u64 = 3;

/// The score of tokens that fill the vocabulary up, and of those that are added to it.
const UNUSED_SCORE: f32 = -10_000.0;
const ADDED_SCORE: f32 = -1_000.0;

/// Writes the vocabulary in `bytes`, filled up to `n_tokens`; returns its tokens.
///
/// # Errors
/// [`ExportFault::Tokenizer`].
pub(super) fn write(
    path: &Path,
    bytes: &[u8],
    n_tokens: usize,
    settings: &Value,
    head: &mut GgufHead,
) -> Result<Tokens> {
    let refused = |reason: String| -> crate::Error {
        ExportFault::Tokenizer {
            path: path.into(),
            reason,
        }
        .into()
    };
    let damaged = || refused("tokenizer.model is no model of SentencePiece".into());
    let (mut tokens, mut scores) = (Tokens::default(), Vec::new());
    let (mut model_type, mut adds_prefix) = (None, true);
    for field in Fields::new(bytes) {
        match field.ok_or_else(damaged)? {
            (PIECES, Field::Bytes(piece)) => {
                let (text, score, kind) = piece_of(piece).ok_or_else(damaged)?;
                tokens.texts.push(text);
                tokens.kinds.push(kind);
                scores.push(score);
            }
            (TRAINER, Field::Bytes(of)) => model_type = integer_in(of, MODEL_TYPE),
            (NORMALIZER, Field::Bytes(of)) => {
                adds_prefix = integer_in(of, ADD_PREFIX) != Some(0);
            }
            _ => {}
        }
    }
    if tokens.texts.is_empty() {
        return Err(damaged());
    }
    if model_type != Some(BPE) {
        return Err(refused(
            "tokenizer.model does not join pairs (BPE), as programs that run GGUF files do".into(),
        ));
    }
    if n_tokens > 0 && tokens.texts.len() > n_tokens {
        return Err(refused(format!(
            "tokenizer.model has {} tokens, and config.json has {n_tokens} as `vocab_size`",
            tokens.texts.len()
        )));
    }
    tokens.fill(n_tokens);
    scores.resize(tokens.texts.len(), UNUSED_SCORE);
    for (id, added) in settings["added_tokens_decoder"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let id = id
            .parse()
            .ok()
            .filter(|&id: &usize| id < tokens.texts.len());
        let (Some(id), Some(text)) = (id, added["content"].as_str()) else {
            return Err(refused(
                "an added token is beyond the vocabulary, or has no text".into(),
            ));
        };
        if tokens.texts[id] == text.as_bytes() && tokens.kinds[id] != NORMAL {
            continue;
        }
        let is_control = added["special"] == Value::Bool(true) || looks_special(text);
        (tokens.texts[id], scores[id]) = (text.as_bytes().to_vec(), ADDED_SCORE);
        tokens.kinds[id] = if is_control { CONTROL } else { USER_DEFINED };
    }
    head.text("tokenizer.ggml.model", "llama");
    head.text("tokenizer.ggml.pre", "default");
    head.f32s("tokenizer.ggml.scores", &scores);
    let said = settings["add_prefix_space"].as_bool();
    if !said.unwrap_or(adds_prefix) {
        head.bool("tokenizer.ggml.add_space_prefix", false);
    }
    Ok(tokens)
}

/// Text, score and type of a piece; types have the same numbers in GGUF.
fn piece_of(message: &[u8]) -> Option<(Vec<u8>, f32, i32)> {
    let (mut text, mut score, mut kind) = (Vec::new(), 0.0, NORMAL);
    for field in Fields::new(message) {
        match field? {
            (1, Field::Bytes(bytes)) => text = bytes.to_vec(),
            (2, Field::Narrow(bytes)) => score = f32::from_le_bytes(bytes),
            (3, Field::Integer(n)) => {
                kind = i32::try_from(n).ok().filter(|n| (1..=6).contains(n))?
            }
            _ => {}
        }
    }
    Some((text, score, kind))
}

/// The last whole number under a field's number.
fn integer_in(message: &[u8], number: u64) -> Option<u64> {
    let fields = Fields::new(message).flatten();
    let numbers = fields.filter_map(|(own, field)| match field {
        Field::Integer(n) if own == number => Some(n),
        _ => None,
    });
    numbers.last()
}
