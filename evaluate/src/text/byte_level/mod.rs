//! RoBERTa's tokenizer: byte pairs over bytes.
//!
//! Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2; Liu et al.
//! 2019, "RoBERTa", <https://arxiv.org/abs/1907.11692>, section 4.4.

mod files;

pub use files::{Files, read};
pub use merge::beside::byte_alphabet as alphabet;

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeBuilder};
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

impl Vocabulary {
    /// A token with its id.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] with the file.
    fn id_of(&self, path: &Path, token: &str) -> Result<(String, u32)> {
        let found = self.ids.iter().find(|(known, _)| known == token);
        found.cloned().ok_or_else(|| Error::SpecialToken {
            path: path.into(),
            token: token.into(),
        })
    }

    /// The first and the last token around a text.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] when the vocabulary lacks one of them.
    pub fn frame(&self, path: &Path, [first, last]: [&str; 2]) -> Result<RobertaProcessing> {
        let frame = RobertaProcessing::new(self.id_of(path, last)?, self.id_of(path, first)?);
        Ok(frame.trim_offsets(false).add_prefix_space(false))
    }

    /// Byte pairs that are joined, with this token for unknown bytes; not yet built.
    pub fn byte_pairs(self, unknown: &str) -> BpeBuilder {
        let ids = self.ids.into_iter();
        BPE::builder()
            .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), self.merges)
            .unk_token(unknown.into())
    }
}

/// The error of a tokenizer that cannot be made of a file.
pub fn unusable(
    path: &Path,
) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error + Copy + use<'_> {
    move |error| Error::Tokenizer {
        path: path.into(),
        fault: error.to_string(),
    }
}

/// The tokenizer of RoBERTa over a vocabulary. It keeps the habits of the Python class: no space is put
/// before a text, `<mask>` takes the spaces before it, other special tokens take none.
pub fn roberta(path: &Path, vocabulary: Vocabulary) -> Result<Tokenizer> {
    let [first, last] = BORDERS;
    let frame = vocabulary.frame(path, BORDERS)?;
    for token in [PADDING, UNKNOWN, MASK] {
        vocabulary.id_of(path, token)?;
    }
    let unusable = unusable(path);
    let model = vocabulary.byte_pairs(UNKNOWN).build().map_err(unusable)?;
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
