//! CLIP's tokenizer: byte pairs within words, in lower case, as open_clip and as transformers have it.
//!
//! Radford et al. 2021, <https://arxiv.org/abs/2103.00020>, section 2.4. The two libraries differ in what they make of a
//! text before it is cut into words, and in how the tokens are spelled that stand around it.

mod files;
mod repair;

use std::path::Path;

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Cuts;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

pub use files::{is_list_of_merges, read_merges, vocabulary};
pub use repair::{repaired, unescaped};

use super::byte_level::{Vocabulary, unusable};
use crate::Result;

/// The end of a token that ends a word.
const END_OF_WORD: &str = "</w>";

/// The library whose rules make tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipFlavor {
    /// open_clip's: broken text repaired, HTML entities resolved.
    OpenClip,
    /// Those of transformers' fast class: neither.
    HuggingFace,
    /// Those of transformers' slow class where ftfy is installed: broken text repaired, entities with it.
    HuggingFaceSlow,
}

impl ClipFlavor {
    /// The tokens that stand around a text, as the library spells them.
    #[must_use]
    pub fn borders(self) -> [&'static str; 2] {
        match self {
            Self::OpenClip => ["<start_of_text>", "<end_of_text>"],
            Self::HuggingFace | Self::HuggingFaceSlow => ["<|startoftext|>", "<|endoftext|>"],
        }
    }

    /// A word, as a regular expression.
    ///
    /// Python's `regex` compares without case: then a long s is one after an apostrophe, and U+0345, whose capital is a
    /// letter, is neither a letter nor anything else, so it is lost.
    fn words(self) -> &'static str {
        match self {
            Self::OpenClip | Self::HuggingFaceSlow => {
                r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"
            }
            Self::HuggingFace => r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        }
    }

    /// A text as the library cuts it into words.
    #[must_use]
    pub fn clean(self, text: &str) -> String {
        match self {
            Self::OpenClip => {
                let text = unescaped(&unescaped(&repaired(text)));
                one_spaced(&text).to_lowercase()
            }
            Self::HuggingFaceSlow => one_spaced(&repaired(text)).to_lowercase(),
            // Its tokenizer does it.
            Self::HuggingFace => text.to_owned(),
        }
    }
}

/// A text as open_clip's SigLIP reads it: broken text repaired, entities resolved, spaces for `_`, without the
/// punctuation of ASCII, in lower case, one space between words.
#[must_use]
pub fn clean_siglip(text: &str) -> String {
    let text = unescaped(&unescaped(&repaired(text))).replace('_', " ");
    let kept: String = text
        .chars()
        .filter(|character| !character.is_ascii_punctuation())
        .collect();
    one_spaced(&kept.to_lowercase())
}

/// Words with one space between them.
fn one_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The tokenizer over a vocabulary, whose last two tokens stand around a text.
///
/// # Errors
/// [`Error::SpecialToken`](crate::Error::SpecialToken) and [`Error::Tokenizer`](crate::Error::Tokenizer).
pub fn tokenizer(path: &Path, vocabulary: Vocabulary, flavor: ClipFlavor) -> Result<Tokenizer> {
    let unusable = unusable(path);
    let [first, last] = flavor.borders();
    let frame = vocabulary.frame(path, [first, last])?;
    let model = vocabulary
        .byte_pairs(last)
        .end_of_word_suffix(END_OF_WORD.into())
        .build()
        .map_err(unusable)?;
    let mut tokenizer = Tokenizer::new(model);
    let spaces = ReplacePattern::Regex(r"\s+".into());
    let steps = vec![
        NFC.into(),
        Replace::new(spaces, " ").map_err(unusable)?.into(),
        Lowercase.into(),
    ];
    if flavor == ClipFlavor::HuggingFace {
        (tokenizer.with_normalizer(Some(Sequence::new(steps)))).map_err(unusable)?;
    }
    let words = SplitPattern::Regex(flavor.words().into());
    let cut = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(unusable)?;
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(Cuts::new(vec![cut.into(), bytes.into()])));
    tokenizer.with_post_processor(Some(frame));
    let special = [first, last].map(|token| AddedToken::from(token, true).normalized(false));
    tokenizer.add_special_tokens(special).map_err(unusable)?;
    Ok(tokenizer)
}
