//! Changes a caption as FLM's published program does before it splits it into tokens.

/// Tokens that stand around the words of a caption, of a model that writes captions: `[first, last]`.
pub const CAPTION_BORDERS: [&str; 2] = ["<bos>", "<eos>"];

/// Rewrites captions: each ends in exactly one period, between tokens of its own where the model has such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CaptionText {
    /// Put `<bos>` and a space before the caption.
    pub begin: bool,
    /// Put a space and `<eos>` behind the caption.
    pub end: bool,
}

impl CaptionText {
    /// Of models that write captions.
    pub const WRITING: Self = Self {
        begin: true,
        end: true,
    };

    /// The caption as the model reads it: spaces, then periods, then spaces are taken off its end, and one
    /// period is put there, whatever other mark the caption ends in.
    ///
    /// # Example
    /// ```
    /// use evaluate::text::CaptionText;
    /// assert_eq!(CaptionText::WRITING.apply("a man . "), "<bos> a man. <eos>");
    /// assert_eq!(CaptionText::default().apply("who?"), "who?.");
    /// ```
    #[must_use]
    pub fn apply(self, caption: &str) -> String {
        let words = caption.trim_end().trim_end_matches('.').trim_end();
        let [first, last] = CAPTION_BORDERS;
        let mut text = String::with_capacity(words.len() + first.len() + last.len() + 3);
        if self.begin {
            text.push_str(first);
            text.push(' ');
        }
        text.push_str(words);
        text.push('.');
        if self.end {
            text.push(' ');
            text.push_str(last);
        }
        text
    }
}
