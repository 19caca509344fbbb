//! The change of captions that ZeroVL trains with.

use std::cell::RefCell;

use evaluate::text::Tokenizer;
use merge::random::Sequence;

use crate::Result;
use crate::augment::corrupted;

/// Replaces, drops and swaps pieces of captions by draws.
pub(super) struct Corruption {
    /// Takes `[MASK]` for a text like others.
    pub(super) tokenizer: Tokenizer,
    entries: Vec<String>,
}

impl Corruption {
    /// Reads the tokenizer at `path` once more, with special tokens as text.
    pub(super) fn open(path: &str) -> Result<Self> {
        let tokenizer = Tokenizer::open(path)?.with_special_as_text();
        let entries = tokenizer.entries();
        Ok(Self { tokenizer, entries })
    }

    /// The changed caption.
    pub(super) fn apply(&self, text: &str, draws: &mut Sequence) -> evaluate::Result<String> {
        let pieces = self.tokenizer.pieces(text)?;
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let draws = RefCell::new(draws);
        Ok(corrupted(
            &pieces,
            || draws.borrow_mut().uniform(),
            || self.entries[draws.borrow_mut().below(self.entries.len())].as_str(),
        ))
    }
}
