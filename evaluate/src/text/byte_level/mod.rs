//! RoBERTa's tokenizer: byte pairs over bytes.
//!
//! Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2; Liu et al.
//! 2019, "RoBERTa", <https://arxiv.org/abs/1907.11692>, section 4.4.

pub mod alphabet;
mod files;

pub use files::{Files, read};

use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// The tokens that stand around a text, `[first, last]`.
const BORDERS: [&str; 2] = ["<s>", "</s>"];
const PADDING: &str = "<pad>";
const UNKNOWN: &str = "<unk>";
const MASK: &str = "<mask>";

/// A vocabulary: tokens with ids from 0 without gaps, and the pairs that are joined, the first first.
pub struct Vocabulary {
    pub ids: Vec<(String, u32)>,
    pub merges: Vec<(String, String)>,
}

/// The tokenizer of RoBERTa over a vocabulary. It keeps the habits of the Python class: no space is put
/// before a text, `<mask>` takes the spaces before it, other special tokens take none.
pub fn roberta(path: &Path, vocabulary: Vocabulary) -> Result<Tokenizer> {
    let id_of = |token: &str| {
        let ids = &vocabulary.ids;
        let found = ids.iter().find(|(known, _)| known == token);
        found.cloned().ok_or_else(|| Error::SpecialToken {
            path: path.into(),
            token: token.into(),
        })
    };
    let [first, last] = BORDERS;
    let frame = RobertaProcessing::new(id_of(last)?, id_of(first)?)
        .trim_offsets(false)
        .add_prefix_space(false);
    for token in [PADDING, UNKNOWN, MASK] {
        id_of(token)?;
    }
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| Error::Tokenizer {
        path: path.into(),
        fault: error.to_string(),
    };
    let model = BPE::builder()
        .vocab_and_merges(
            vocabulary
                .ids
                .into_iter()
                .collect::<tokenizers::models::bpe::Vocab>(),
            vocabulary.merges,
        )
        .unk_token(UNKNOWN.into())
        .build()
        .map_err(unusable)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    tokenizer.with_post_processor(Some(frame));
    let special = [first, PADDING, last, UNKNOWN, MASK].map(|token| {
        let token = AddedToken::from(token, true);
        let takes_spaces = token.content == MASK;
        token.lstrip(takes_spaces)
    });
    tokenizer.add_special_tokens(special).map_err(unusable)?;
    Ok(tokenizer)
}
