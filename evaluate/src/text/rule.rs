//! The changes that a family makes to texts before it splits them into tokens.

use super::{CaptionText, clean_caption, clean_question, clean_siglip};

/// Words that EVE keeps of a caption.
const CAPTION_WORDS: usize = 30;

/// Words that EVE keeps of a statement about two images.
const STATEMENT_WORDS: usize = 40;

/// Words that EVE keeps of a question: that it learns from, and that it answers.
const QUESTION_WORDS: [usize; 2] = [30, 50];

/// The kind of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextKind {
    /// The caption of an image.
    Caption,
    /// A statement about two images.
    Statement,
    /// A question that is to be answered.
    Question,
    /// A question that is learned from.
    LearnedQuestion,
    /// A text of no image.
    #[default]
    Plain,
}

impl TextKind {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Statement => "statement",
            Self::Question | Self::LearnedQuestion => "question",
            Self::Plain => "text",
        }
    }
}

/// The changes of texts before they are split into tokens, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextRule {
    /// Nothing.
    #[default]
    Verbatim,
    /// FLM's: each caption ends in one period, and stands between [`CAPTION_BORDERS`](super::CAPTION_BORDERS) where the
    /// vocabulary has them ([`CaptionText`]). Other texts are read as they are.
    Ended,
    /// EVE's: captions of 30 words and statements of 40 by [`clean_caption`], questions of 50 words, and of 30 in
    /// training, by [`clean_question`]. Plain texts are read as they are.
    Cleaned,
    /// open_clip's for SigLIP ([`clean_siglip`]), for texts of all kinds.
    Siglip,
}

impl TextRule {
    /// A text as it is read, without tokens of its own around it; `None` where the rule leaves no word of a
    /// caption or a statement.
    #[must_use]
    pub fn read(self, kind: TextKind, text: &str) -> Option<String> {
        let [learned, asked] = QUESTION_WORDS;
        match (self, kind) {
            (Self::Ended, TextKind::Caption) => {
                let ended = CaptionText::default().apply(text);
                (ended.trim() != ".").then_some(ended)
            }
            (Self::Cleaned, TextKind::Caption) => clean_caption(text, CAPTION_WORDS),
            (Self::Cleaned, TextKind::Statement) => clean_caption(text, STATEMENT_WORDS),
            (Self::Cleaned, TextKind::LearnedQuestion) => Some(clean_question(text, learned)),
            (Self::Cleaned, TextKind::Question) => Some(clean_question(text, asked)),
            (Self::Siglip, _) => Some(clean_siglip(text)),
            (Self::Verbatim, _) | (Self::Ended | Self::Cleaned, _) => Some(text.to_owned()),
        }
    }

    /// Reads a caption. The text is empty if the rule leaves no word. Two captions are the same if their texts are.
    #[must_use]
    pub fn apply(self, caption: &str) -> String {
        self.read(TextKind::Caption, caption).unwrap_or_default()
    }
}
