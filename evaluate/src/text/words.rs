//! The tokens that begin words, for vocabularies of both kinds.

use super::byte_level::alphabet;
use super::{Kind, Tokenizer};
use crate::{Result, TextFault};

/// The tokens of each word, of one vocabulary.
///
/// Of WordPiece a token goes on with the word before it if it is spelled with `##`. A byte-level token
/// has no such mark: it goes on if it does not begin with a space and is of the kind that the token
/// before it ends in: letters, digits or marks. These are the pieces that the tokenizer itself cuts a
/// text into, so a word, a number and the marks between two words are one unit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordBoundaries(Joints);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Joints {
    /// By id, whether the token goes on with a word.
    Marked(Vec<bool>),
    /// By id, what the token begins and ends with.
    Edges(Vec<[Edge; 2]>),
}

/// The first or the last character of a token, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Space,
    Letter,
    Digit,
    Mark,
    /// Bytes that are a part of a character.
    Part,
}

impl WordBoundaries {
    /// Of tokens that say themselves, by id, whether they go on with a word.
    #[must_use]
    pub fn marked(continues: Vec<bool>) -> Self {
        Self(Joints::Marked(continues))
    }

    /// Whether the token `id` is of the same word as `before`, the token right before it. An id that the
    /// vocabulary does not have is a word of its own.
    #[must_use]
    pub fn joins(&self, before: u32, id: u32) -> bool {
        match &self.0 {
            Joints::Marked(continues) => continues.get(id as usize).copied().unwrap_or(false),
            Joints::Edges(edges) => {
                let edge = |id: u32, nth: usize| edges.get(id as usize).map(|edge| edge[nth]);
                match (edge(before, 1), edge(id, 0)) {
                    (_, None | Some(Edge::Space)) | (None, _) => false,
                    // The rest of a character is of its word.
                    (_, Some(Edge::Part)) | (Some(Edge::Part), _) => true,
                    (Some(end), Some(begin)) => end == begin,
                }
            }
        }
    }

    /// The number of ids.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        match &self.0 {
            Joints::Marked(continues) => continues.len(),
            Joints::Edges(edges) => edges.len(),
        }
    }
}

impl Tokenizer {
    /// The tokens that begin words.
    ///
    /// # Errors
    /// [`TextFault::NoWordBoundaries`] for tokenizers that are neither WordPiece nor byte-level.
    pub fn word_boundaries(&self) -> Result<WordBoundaries> {
        let tokens = self.entries();
        match self.kind {
            Kind::WordPiece => {
                let goes_on = tokens.iter().map(|token| token.starts_with("##"));
                Ok(WordBoundaries::marked(goes_on.collect()))
            }
            Kind::ByteLevel => {
                let special = self.special.all();
                let edges = tokens.iter().zip(0..).map(|(token, id)| {
                    match special.contains(&id) || self.is_added(token) {
                        true => [Edge::Space; 2],
                        false => edges(&alphabet::bytes_of(token)),
                    }
                });
                Ok(WordBoundaries(Joints::Edges(edges.collect())))
            }
            Kind::Other => Err(TextFault::NoWordBoundaries {
                path: self.path.clone(),
            }
            .into()),
        }
    }
}

/// The first and the last character of a token's bytes, by kind.
fn edges(bytes: &[u8]) -> [Edge; 2] {
    let text = String::from_utf8_lossy(bytes);
    let edge = |character: Option<char>| match character {
        None | Some(char::REPLACEMENT_CHARACTER) => Edge::Part,
        Some(c) if c.is_whitespace() => Edge::Space,
        Some(c) if c.is_alphabetic() => Edge::Letter,
        Some(c) if c.is_numeric() => Edge::Digit,
        Some(_) => Edge::Mark,
    };
    [edge(text.chars().next()), edge(text.chars().next_back())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[&str]) -> WordBoundaries {
        let edges = tokens
            .iter()
            .map(|token| super::edges(&alphabet::bytes_of(token)));
        WordBoundaries(Joints::Edges(edges.collect()))
    }

    #[test]
    fn byte_level_words_end_where_letters_digits_and_marks_change() {
        // "Two frisbees' 45th … café"; the last two tokens are the halves of one character.
        let tokens = [
            "Two", "Ġfr", "is", "bees", "'", "Ġ45", "th", "ĠâĢ", "¦", "ĠcafÃ", "©",
        ];
        let words = of(&tokens);
        let joined: Vec<bool> = (1..tokens.len() as u32)
            .map(|id| words.joins(id - 1, id))
            .collect();
        let expected = [
            false, true, true, false, false, false, false, true, false, true,
        ];
        assert_eq!(joined, expected);
        assert!(!words.joins(0, 99) && !words.joins(99, 1));
    }
}
