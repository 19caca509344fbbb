//! Texts that tell left from right, whose pictures are not mirrored.

use serde::{Deserialize, Serialize};

/// Words that a mirrored picture makes wrong.
const SIDES: [&str; 2] = ["left", "right"];

/// The texts that keep their picture from being mirrored. An example's texts are its question with its answers, its
/// statement, or its caption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlipGuard {
    /// None do.
    #[default]
    None,
    /// Texts that hold `left` or `right` in lower case, inside of words too: "bright" does, "Right" does not.
    /// EVE's published program asks so, of questions alone.
    AsPublished,
    /// Texts that have `left` or `right` as a word, in any case.
    Words,
}

impl FlipGuard {
    /// Whether a picture with these texts may be mirrored.
    ///
    /// # Example
    /// ```
    /// use train::augment::FlipGuard;
    /// assert!(!FlipGuard::AsPublished.allows(["Is it bright?", "yes"]));
    /// assert!(FlipGuard::Words.allows(["Is it bright?", "yes"]));
    /// assert!(!FlipGuard::Words.allows(["Turn Right!", "yes"]));
    /// ```
    #[must_use]
    pub fn allows<'t>(self, texts: impl IntoIterator<Item = &'t str>) -> bool {
        let mut texts = texts.into_iter();
        match self {
            Self::None => true,
            Self::AsPublished => !texts.any(|text| SIDES.iter().any(|side| text.contains(side))),
            Self::Words => !texts.any(|text| {
                let mut words = text.split(|c: char| !c.is_alphanumeric());
                words.any(|word| SIDES.iter().any(|side| word.eq_ignore_ascii_case(side)))
            }),
        }
    }
}
