//! The word pieces of a text.

use super::{Tokenizer, refused};
use crate::Result;

impl Tokenizer {
    /// The same tokenizer, for which `[MASK]` and the like in a text are characters like others, not
    /// tokens of their own.
    #[must_use]
    pub fn with_special_as_text(mut self) -> Self {
        self.inner.set_encode_special_tokens(true);
        self
    }

    /// The word pieces of a text, without the special tokens around it, uncut.
    ///
    /// # Errors
    /// [`crate::Error::Tokenization`] when the tokenizer refuses the text.
    pub fn pieces(&self, text: &str) -> Result<Vec<String>> {
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|error| refused(text, &*error))?;
        // Spaces beside an added token are of its text, but not of the token.
        let ids = encoding.get_ids().iter();
        Ok(ids.filter_map(|&id| self.inner.id_to_token(id)).collect())
    }

    /// Every entry of the vocabulary, by id; empty where an id has none.
    #[must_use]
    pub fn entries(&self) -> Vec<String> {
        let ids = 0..self.vocabulary_size() as u32;
        ids.map(|id| self.inner.id_to_token(id).unwrap_or_default())
            .collect()
    }
}
