//! Tokens that are not of a text, by habit of BERT and of RoBERTa.

use std::path::Path;

use crate::{Error, Result};

const PADDING: [&str; 2] = ["[PAD]", "<pad>"];
const FIRST: [&str; 2] = ["[CLS]", "<s>"];
const LAST: [&str; 2] = ["[SEP]", "</s>"];
const MASK: [&str; 2] = ["[MASK]", "<mask>"];
const UNKNOWN: [&str; 2] = ["[UNK]", "<unk>"];

/// Around a text by habit of CLIP: open_clip's spelling and that of transformers.
const OF_CLIP: [[&str; 2]; 2] = [
    ["<start_of_text>", "<end_of_text>"],
    ["<|startoftext|>", "<|endoftext|>"],
];

/// Those of a CLIP's tokenizer. open_clip fills texts up with zeros, transformers with the last token; no row that counts
/// sees them.
fn of_clip(tokenizer: &tokenizers::Tokenizer) -> Option<Special> {
    OF_CLIP
        .into_iter()
        .zip([true, false])
        .find_map(|(names, is_open_clip)| {
            let [first, last] = names.map(|name| tokenizer.token_to_id(name));
            let (first, last) = (first?, last?);
            Some(Special {
                padding: if is_open_clip { 0 } else { last },
                borders: [first, last],
                mask: None,
                unknown: None,
            })
        })
}

/// Ids of the tokens that are not of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// Fills short texts up.
    pub padding: u32,
    /// Around a text: `[first, last]`.
    pub borders: [u32; 2],
    /// In place of a token that is to be guessed, where the vocabulary has one.
    pub mask: Option<u32>,
    /// In place of words outside the vocabulary, where it has one.
    pub unknown: Option<u32>,
}

impl Special {
    /// Those of a tokenizer. One that names no first token has none of its own: the last one stands for
    /// both.
    pub(super) fn find(path: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let find = |names: [&str; 2]| {
            let mut ids = names.iter().map(|name| tokenizer.token_to_id(name));
            ids.find_map(|id| id)
        };
        let require = |names: [&str; 2]| {
            find(names).ok_or_else(|| Error::SpecialToken {
                path: path.into(),
                token: names[0].into(),
            })
        };
        if let Some(special) = of_clip(tokenizer) {
            return Ok(special);
        }
        let padding = require(PADDING)?;
        let last = require(LAST)?;
        Ok(Self {
            padding,
            borders: [find(FIRST).unwrap_or(last), last],
            mask: find(MASK),
            unknown: find(UNKNOWN),
        })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<u32> {
        let [first, last] = self.borders;
        let always = [self.padding, first, last];
        always
            .into_iter()
            .chain(self.mask)
            .chain(self.unknown)
            .collect()
    }
}
