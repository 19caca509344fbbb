//! What a model takes of a text.

use std::borrow::Cow;

use super::{CAPTION_BORDERS, CaptionText, Tokenizer};
use crate::{Error, Result, TextFault};

/// Up to where the texts of a batch are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// To the longest of them: what lies behind is padding for all, and no token sees it.
    Longest,
    /// To one token beyond the longest of them, as far as the model's length: where the first token of padding
    /// counts, as it does in FLM's reverse stream, and those behind it do not.
    OneBeyond,
    /// To the model's length, whatever the texts: padding counts, as where the last tokens of a
    /// sequence are the text's, however long it is.
    Full,
}

/// What a family makes of captions before they are split into tokens. Questions and statements are
/// read as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaptionRule {
    /// Nothing.
    #[default]
    Verbatim,
    /// What FLM does: each ends in one period, and stands between [`CAPTION_BORDERS`] where the
    /// vocabulary has them ([`CaptionText`]).
    Ended,
}

impl CaptionRule {
    /// A caption as it is read, without tokens of its own around it.
    #[must_use]
    pub fn apply(self, caption: &str) -> String {
        match self {
            Self::Verbatim => caption.to_owned(),
            Self::Ended => CaptionText::default().apply(caption),
        }
    }
}

/// What a model takes of a text: it comes with the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextInput {
    /// Tokens, special ones included; a longer text is cut.
    pub len: usize,
    /// Up to where shorter texts are padded.
    pub padding: Padding,
    /// Token ids, counted to the largest: a tokenizer must have as many.
    pub vocabulary: usize,
    /// What becomes of captions first.
    pub captions: CaptionRule,
}

impl TextInput {
    /// To how many tokens texts are padded that have these numbers of them.
    #[must_use]
    pub fn padded_len(&self, n_tokens: impl IntoIterator<Item = usize>) -> usize {
        match self.padding {
            Padding::Longest => n_tokens.into_iter().max().unwrap_or(0).min(self.len),
            Padding::OneBeyond => n_tokens
                .into_iter()
                .max()
                .map_or(0, |n| n + 1)
                .min(self.len),
            Padding::Full => self.len,
        }
    }
}

impl Tokenizer {
    /// This tokenizer for a model: where the family writes captions and the model's vocabulary is larger
    /// by [`CAPTION_BORDERS`], with these added.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`] when the vocabularies are not of one size: exactly where the family
    /// adds tokens, else as [`check_vocabulary`](Self::check_vocabulary) says.
    pub fn for_input(&self, input: &TextInput) -> Result<Cow<'_, Self>> {
        if input.captions == CaptionRule::Verbatim {
            self.check_vocabulary(input.vocabulary)?;
            return Ok(Cow::Borrowed(self));
        }
        let fitting = match input.vocabulary == self.vocabulary_size() + CAPTION_BORDERS.len() {
            true => Cow::Owned(self.clone().with_added(&CAPTION_BORDERS)?),
            false => Cow::Borrowed(self),
        };
        match fitting.vocabulary_size() == input.vocabulary {
            true => Ok(fitting),
            false => Err(Error::OtherVocabulary {
                path: self.path().into(),
                found: self.vocabulary_size(),
                expected: input.vocabulary,
            }),
        }
    }

    /// A caption as a model reads it.
    ///
    /// # Errors
    /// [`TextFault::NoWords`] for a caption of which a rule leaves nothing but the period that it adds.
    pub fn caption<'t>(&self, rule: CaptionRule, caption: &'t str) -> Result<Cow<'t, str>> {
        Ok(match rule {
            CaptionRule::Verbatim => Cow::Borrowed(caption),
            CaptionRule::Ended => {
                if CaptionText::default().apply(caption).trim() == "." {
                    return Err(TextFault::NoWords {
                        caption: caption.into(),
                    }
                    .into());
                }
                let has_borders = CAPTION_BORDERS
                    .iter()
                    .all(|token| self.id_of(token).is_ok());
                let text = match has_borders {
                    true => CaptionText::WRITING,
                    false => CaptionText::default(),
                };
                Cow::Owned(text.apply(caption))
            }
        })
    }
}
