//! Captions and questions to token ids.

mod growth;
mod hub;
mod input;
mod pieces;
mod vocabulary;

use std::path::{Path, PathBuf};

pub use input::{Padding, TextInput};

use crate::{Error, Result};

/// The largest tokenizer file that is read.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// The names of the tokens that every text needs, by habit of BERT and of RoBERTa.
const PADDING: [&str; 2] = ["[PAD]", "<pad>"];
const SEPARATORS: [&str; 2] = ["[SEP]", "</s>"];

/// Tables of word embeddings are padded to multiples of powers of two up to this one.
const LARGEST_MULTIPLE: usize = 1024;

/// So many rows may be room for tokens that were added to a model, but not to this vocabulary.
const MAX_ADDED_ROWS: usize = 8;

/// A text as ids, filled up to the asked length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The ids, with those of the padding at the end.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub n_tokens: usize,
}

/// Splits texts into tokens, for BERT uncased as the published models use it: lower case, accents
/// stripped, Chinese characters apart, punctuation split, then WordPiece, in `[CLS] … [SEP]`.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    padding: u32,
    separator: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (formatter.debug_struct("Tokenizer"))
            .field("path", &self.path)
            .field("vocabulary_size", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens what `name` stands for: a `vocab.txt` of BERT uncased, a `tokenizer.json`, a folder
    /// with either, or else a model of the Hugging Face hub such as `bert-base-uncased`, whose
    /// file is fetched once and kept in the hub's usual cache (feature `hub`).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a file is damaged, [`Error::SpecialToken`] when it lacks the
    /// padding, the separator or BERT's other special tokens, [`Error::TokenizerFromHub`] when
    /// there is no such file and the hub does not help.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if path.is_dir() {
            let inside = ["tokenizer.json", "vocab.txt"].map(|file| path.join(file));
            return match inside.iter().find(|file| file.is_file()) {
                Some(file) => Self::from_file(file),
                None => Err(Error::Tokenizer {
                    path: path.into(),
                    fault: "the folder holds neither tokenizer.json nor vocab.txt".into(),
                }),
            };
        }
        if path.exists() {
            return Self::from_file(path);
        }
        Self::from_file(&hub::fetch(name)?)
    }

    fn from_file(path: &Path) -> Result<Self> {
        let bytes = read(path)?;
        let unusable = |fault: String| Error::Tokenizer {
            path: path.into(),
            fault,
        };
        // A vocabulary never begins with a brace: `{` is a token, but no file lists it first.
        let is_json = bytes.trim_ascii_start().starts_with(b"{\n")
            || path
                .extension()
                .is_some_and(|extension| extension == "json");
        let mut inner = if is_json {
            growth::check(&bytes).map_err(unusable)?;
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?
        } else {
            vocabulary::bert_uncased(path, &bytes)?
        };
        // Lengths are ours to choose.
        inner.with_padding(None);
        (inner.with_truncation(None)).map_err(|error| unusable(error.to_string()))?;
        let find = |names: [&str; 2]| {
            let ids = names.iter().find_map(|name| inner.token_to_id(name));
            ids.ok_or_else(|| Error::SpecialToken {
                path: path.into(),
                token: names[0].into(),
            })
        };
        Ok(Self {
            path: path.into(),
            padding: find(PADDING)?,
            separator: find(SEPARATORS)?,
            inner,
        })
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many ids there are, counted to the largest.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Checks that every id is a row of the model's word embeddings. Rows beyond the tokens must be
    /// padding (the table has the next multiple of a power of two) or a few: more are the sign of another
    /// vocabulary, whose ids would stand for other words.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`].
    pub fn check_vocabulary(&self, n_embeddings: usize) -> Result<()> {
        let ids = self.inner.get_vocab(true);
        let found = ids
            .values()
            .max()
            .map_or(0, |&largest| largest as usize + 1);
        let mut multiples = std::iter::successors(Some(2), |&m| Some(2 * m))
            .take_while(|&m| m <= LARGEST_MULTIPLE)
            .map(|m| found.next_multiple_of(m));
        let is_close = (found..=found + MAX_ADDED_ROWS).contains(&n_embeddings);
        match is_close || multiples.any(|multiple| multiple == n_embeddings) {
            true => Ok(()),
            false => Err(Error::OtherVocabulary {
                path: self.path().into(),
                found,
                expected: n_embeddings,
            }),
        }
    }

    /// The id of a token such as `[MASK]`.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] when there is no such token.
    pub fn id_of(&self, token: &str) -> Result<u32> {
        let id = self.inner.token_to_id(token);
        id.ok_or_else(|| Error::SpecialToken {
            path: self.path.clone(),
            token: token.into(),
        })
    }

    /// For each id whether its token goes on a word, as WordPiece marks it with `##`.
    #[must_use]
    pub fn continuing(&self) -> Vec<bool> {
        let goes_on = |id: usize| {
            let token = self.inner.id_to_token(id as u32);
            token.is_some_and(|token| token.starts_with("##"))
        };
        (0..self.vocabulary_size()).map(goes_on).collect()
    }

    /// The id that fills short texts up.
    #[must_use]
    pub fn padding_id(&self) -> u32 {
        self.padding
    }

    /// The ids of a text with its special tokens: a longer one is cut, its last token then the
    /// separator; a shorter one is filled up.
    ///
    /// # Errors
    /// [`Error::Tokenization`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Encoded> {
        let mut ids = self.ids(text)?;
        if ids.len() > max_len {
            ids.truncate(max_len);
            if let Some(last) = ids.last_mut() {
                *last = self.separator;
            }
        }
        let n_tokens = ids.len();
        ids.resize(max_len, self.padding);
        Ok(Encoded { ids, n_tokens })
    }

    /// How many tokens a text has, special ones included, before it is cut.
    ///
    /// # Errors
    /// As [`encode`](Self::encode)'s.
    pub fn count(&self, text: &str) -> Result<usize> {
        self.ids(text).map(|ids| ids.len())
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding.map_err(|error| refused(text, &*error))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The error for a text that the tokenizer refuses.
fn refused(text: &str, fault: &dyn std::error::Error) -> Error {
    Error::Tokenization {
        text: text.chars().take(80).collect(),
        fault: fault.to_string(),
    }
}

/// Reads a file that is not too large.
fn read(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    if metadata.len() > MAX_TOKENIZER_BYTES {
        return Err(Error::FileTooLarge {
            path: path.into(),
            n_bytes: metadata.len(),
            limit: MAX_TOKENIZER_BYTES,
        });
    }
    let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    merge::io::require_fetched(path, &bytes)?;
    Ok(bytes)
}
