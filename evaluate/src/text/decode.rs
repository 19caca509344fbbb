//! Ids back to text.

use super::{Kind, Tokenizer, byte_level::alphabet};

/// The replacements in a decoded text, one after the other: spaces before marks and before English contractions, as
/// published tokenizers clean their texts up.
const CLEAN_UP: [[&str; 2]; 10] = [
    [" .", "."],
    [" ?", "?"],
    [" !", "!"],
    [" ,", ","],
    [" ' ", "'"],
    [" n't", "n't"],
    [" 'm", "'m"],
    [" 's", "'s"],
    [" 've", "'ve"],
    [" 're", "'re"],
];

impl Tokenizer {
    /// The text of ids. Special tokens among them are part of it; one that was added to the vocabulary
    /// stands between spaces. Spaces before marks and contractions are taken away. Bytes that are no
    /// UTF-8 become U+FFFD, an id without a token becomes nothing.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let tokens = ids.iter().filter_map(|&id| self.inner.id_to_token(id));
        let text = match self.kind {
            Kind::ByteLevel => self.joined_bytes(tokens),
            Kind::WordPiece | Kind::Other => joined_pieces(tokens),
        };
        let clean = |text: String, [from, to]: &[&str; 2]| text.replace(from, to);
        CLEAN_UP.iter().fold(text, clean)
    }

    /// The ids that are no special tokens: neither padding, mask, unknown, nor what stands around a text.
    #[must_use]
    pub fn without_special(&self, ids: &[u32]) -> Vec<u32> {
        let special = &self.special;
        let is_text = |id: &u32| !special.all().contains(id);
        ids.iter().copied().filter(is_text).collect()
    }

    /// Bytes of tokens one after the other; added tokens apart.
    fn joined_bytes(&self, tokens: impl Iterator<Item = String>) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut bytes: Vec<u8> = Vec::new();
        let flush = |bytes: &mut Vec<u8>, parts: &mut Vec<String>| {
            if !bytes.is_empty() {
                parts.push(String::from_utf8_lossy(bytes).into_owned());
                bytes.clear();
            }
        };
        for token in tokens {
            if self.is_added(&token) {
                flush(&mut bytes, &mut parts);
                parts.push(token);
            } else {
                bytes.extend(alphabet::bytes_of(&token));
            }
        }
        flush(&mut bytes, &mut parts);
        parts.join(" ")
    }

    /// Whether a token was added to the vocabulary that the model of tokens has.
    pub(super) fn is_added(&self, token: &str) -> bool {
        use tokenizers::Model as _;
        self.inner.get_model().token_to_id(token).is_none()
    }
}

/// Words with a space between two; pieces that go on with a word (`##`) without one.
fn joined_pieces(tokens: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for token in tokens {
        match token.strip_prefix("##") {
            Some(rest) if !text.is_empty() => text.push_str(rest),
            _ => {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(&token);
            }
        }
    }
    text
}
