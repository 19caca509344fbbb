//! What a model takes of a text.

/// Up to where the texts of a batch are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// To the longest of them: what lies behind is padding for all, and no token sees it.
    Longest,
    /// To the model's length, whatever the texts: padding counts, as where the last tokens of a
    /// sequence are the text's, however long it is.
    Full,
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
}

impl TextInput {
    /// To how many tokens texts are padded that have these numbers of them.
    #[must_use]
    pub fn padded_len(&self, n_tokens: impl IntoIterator<Item = usize>) -> usize {
        match self.padding {
            Padding::Longest => n_tokens.into_iter().max().unwrap_or(0).min(self.len),
            Padding::Full => self.len,
        }
    }
}
