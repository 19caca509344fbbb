//! The form in which a model takes a text.

use std::borrow::Cow;

use super::{CAPTION_BORDERS, CaptionText, TextKind, TextRule, Tokenizer};
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

/// The form in which a model takes a text. It comes with the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextInput {
    /// Tokens, special ones included; a longer text is cut.
    pub len: usize,
    /// Up to where shorter texts are padded.
    pub padding: Padding,
    /// Token ids, counted to the largest: a tokenizer must have as many.
    pub vocabulary: usize,
    /// The change of texts before anything else.
    pub rule: TextRule,
    /// The token that fills short texts up, where a family says it and not the tokenizer.
    pub padding_id: Option<u32>,
    /// Whether the row of a text's largest token stands for it, which must be its end.
    pub ends_at_largest: bool,
}

impl TextInput {
    /// That of a model that reads no texts.
    pub const NONE: Self = Self {
        len: 0,
        padding: Padding::Longest,
        vocabulary: 0,
        rule: TextRule::Verbatim,
        padding_id: None,
        ends_at_largest: false,
    };

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
        if input.rule != TextRule::Ended {
            self.check_vocabulary(input.vocabulary)?;
            let padding = input.padding_id.unwrap_or(self.special.padding);
            let is_fitting =
                padding == self.special.padding && input.ends_at_largest == self.ends_at_largest;
            if is_fitting {
                return Ok(Cow::Borrowed(self));
            }
            let mut fitting = self.clone();
            fitting.special.padding = padding;
            fitting.ends_at_largest = input.ends_at_largest;
            return Ok(Cow::Owned(fitting));
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

    /// A text as a model with this rule reads it.
    ///
    /// # Errors
    /// [`TextFault::NoWords`] for a caption or a statement of which the rule leaves no word.
    pub fn read<'t>(&self, rule: TextRule, kind: TextKind, text: &'t str) -> Result<Cow<'t, str>> {
        if rule == TextRule::Verbatim {
            return Ok(Cow::Borrowed(text));
        }
        let read = rule.read(kind, text);
        let read = read.ok_or_else(|| TextFault::NoWords {
            what: kind.name(),
            text: text.into(),
        })?;
        let is_written = rule == TextRule::Ended && kind == TextKind::Caption;
        let has_borders = || {
            CAPTION_BORDERS
                .iter()
                .all(|token| self.id_of(token).is_ok())
        };
        Ok(Cow::Owned(match is_written && has_borders() {
            true => CaptionText::WRITING.apply(text),
            false => read,
        }))
    }
}
