//! Prompts of language models as ids, without the tokens that a template puts around a text.

use std::path::Path;

use serde_json::Value;

use super::{MAX_TOKENIZER_BYTES, growth};
use crate::{Error, Result};

/// The tokenizer of a language model, as its `tokenizer.json` describes it.
pub struct PromptTokenizer {
    inner: tokenizers::Tokenizer,
    /// The token that texts begin with, if the model has one.
    begin: String,
}

impl PromptTokenizer {
    /// From the text of `tokenizer.json`, and those of `tokenizer_config.json` and `special_tokens_map.json`, of which the
    /// first that names a `bos_token` counts. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a damaged file, one without bounds, and one that is longer than 64 MiB.
    pub fn new(path: &Path, tokenizer: &str, settings: &[Option<String>]) -> Result<Self> {
        let unusable = |fault: String| Error::Tokenizer {
            path: path.into(),
            fault,
        };
        if tokenizer.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(unusable(format!("longer than {MAX_TOKENIZER_BYTES} bytes")));
        }
        growth::check(tokenizer.as_bytes()).map_err(unusable)?;
        let inner = tokenizers::Tokenizer::from_bytes(tokenizer.as_bytes());
        let mut inner = inner.map_err(|error| unusable(error.to_string()))?;
        inner.with_padding(None);
        (inner.with_truncation(None)).map_err(|error| unusable(error.to_string()))?;
        let mut begin = String::new();
        for text in settings.iter().flatten() {
            let settings: Value =
                serde_json::from_str(text).map_err(|error| unusable(error.to_string()))?;
            let token = settings.get("bos_token").filter(|token| !token.is_null());
            if let Some(token) = token {
                let text = token.as_str().or_else(|| token.get("content")?.as_str());
                let text = text.ok_or_else(|| unusable("`bos_token` is no text".to_owned()))?;
                text.clone_into(&mut begin);
                break;
            }
        }
        Ok(Self { inner, begin })
    }

    /// The ids of each text behind the token that texts begin with, and nothing else around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that cannot be split.
    pub fn ids(&self, path: &Path, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let ids = |text: &String| {
            let text = format!("{}{text}", self.begin);
            let encoded = self.inner.encode(text, false);
            let encoded = encoded.map_err(|error| Error::Tokenizer {
                path: path.into(),
                fault: error.to_string(),
            })?;
            Ok(encoded.get_ids().to_vec())
        };
        texts.iter().map(ids).collect()
    }
}
