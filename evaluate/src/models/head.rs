//! Heads of models, by purpose.

use std::fmt;

/// A head, by its purpose. Families spell their weights in their own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Head {
    /// Projections of image and text apart, and the factor of their similarities.
    Contrastive,
    /// The same after blocks that have a joint expert.
    FusedContrastive,
    /// Whether text and image belong together, two classes.
    Matching,
    /// How well text and image belong together, one number.
    Ranking,
    /// Words that are masked.
    MaskedLanguage,
    /// The next word, from those before it.
    CausalLanguage,
    /// Tokens or pixels of patches that are masked.
    MaskedImage,
    /// Answers to questions.
    Vqa,
    /// True or false of a sentence about two images.
    Nlvr2,
    /// Classes of images.
    ImageClasses,
}

impl Head {
    /// Its name in messages, as a noun phrase.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Contrastive => "retrieval projection",
            Self::FusedContrastive => "retrieval projection of the fusion blocks",
            Self::Matching => "matching head",
            Self::Ranking => "ranking head",
            Self::MaskedLanguage => "masked language modeling head",
            Self::CausalLanguage => "language modeling head",
            Self::MaskedImage => "masked image modeling head",
            Self::Vqa => "question answering head",
            Self::Nlvr2 => "NLVR2 head",
            Self::ImageClasses => "image classification head",
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.title())
    }
}
