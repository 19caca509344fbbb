//! Captions and questions to token ids.

mod byte_level;
mod caption;
mod cleaning;
mod clip;
mod decode;
pub(crate) mod file;
mod growth;
mod hub;
mod input;
mod pieces;
mod prompts;
mod rule;
mod sentence_piece;
mod special;
mod vocabulary;
mod words;

use std::path::{Path, PathBuf};

use tokenizers::AddedToken;

pub use caption::{CAPTION_BORDERS, CaptionText};
pub use cleaning::{clean_caption, clean_question};
pub use clip::{ClipFlavor, clean_siglip, repaired};
pub use input::{Padding, TextInput};
pub use prompts::PromptTokenizer;
pub use rule::{TextKind, TextRule};
pub use special::Special;
pub use words::WordBoundaries;

use crate::{Error, Result, TextFault};

/// The largest tokenizer file that is read.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// The name of OpenAI's list of merges.
const CLIP_MERGES: &str = "bpe_simple_vocab_16e6.txt.gz";

/// Tables of word embeddings are padded to multiples of powers of two up to this one.
const LARGEST_MULTIPLE: usize = 1024;

/// The most rows that may be room for tokens that were added to a model, but not to this vocabulary.
const MAX_ADDED_ROWS: usize = 8;

/// A text as ids, filled up to the asked length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The ids, with those of the padding at the end.
    pub ids: Vec<u32>,
    /// The number of tokens that are not padding.
    pub n_tokens: usize,
}

/// The spelling of words in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Pieces of words, those that go on with one spelled with `##`.
    WordPiece,
    /// Joined bytes, spaces among them.
    ByteLevel,
    /// Another way.
    Other,
}

/// Splits texts into tokens as the published models do. BERT uncased: lower case, accents stripped,
/// Chinese characters apart, punctuation split, then WordPiece, in `[CLS] … [SEP]`. RoBERTa: byte pairs
/// over bytes, case kept, in `<s> … </s>`.
#[derive(Clone)]
pub struct Tokenizer {
    path: PathBuf,
    /// The list of merges beside it, where there are two files.
    merges: Option<PathBuf>,
    inner: tokenizers::Tokenizer,
    special: Special,
    kind: Kind,
    /// The change of texts before anything else, of a CLIP's.
    flavor: Option<ClipFlavor>,
    /// Whether the model takes the row of a text's largest token for that of its end.
    ends_at_largest: bool,
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
    /// Opens what `name` stands for: a `vocab.txt` of BERT uncased, a `tokenizer.json`, one of the two
    /// files of a byte-level vocabulary with the other beside it (`vocab.json` or fairseq's `dict.txt`,
    /// and `merges.txt` or GPT-2's `vocab.bpe`), OpenAI's list of the merges of CLIP
    /// (`bpe_simple_vocab_16e6.txt.gz`, by the rules of open_clip), a folder with any of these, or else a model of the
    /// Hugging Face hub such as `bert-base-uncased`, whose file is fetched once and kept in the hub's
    /// usual cache (feature `hub`).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a file is damaged, [`Error::SpecialToken`] when it lacks the
    /// padding, the separator or other special tokens, [`TextFault::MissingPart`] when one of two files
    /// is not there, [`TextFault::SentencePiece`] for a model of SentencePiece, [`Error::TokenizerFromHub`] when there is no such file and the hub does not help.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if path.is_dir() {
            let whole = path.join("tokenizer.json");
            if whole.is_file() {
                return Self::from_file(&whole);
            }
            if let Some(files) = byte_level::Files::in_folder(path)? {
                return Self::from_parts(&files);
            }
            let clip = path.join(CLIP_MERGES);
            if clip.is_file() {
                return Self::clip(&clip, ClipFlavor::OpenClip);
            }
            let words = path.join("vocab.txt");
            if words.is_file() {
                return Self::from_file(&words);
            }
            return Err(match sentence_piece::in_folder(path)? {
                Some(path) => TextFault::SentencePiece { path },
                None => TextFault::NoTokenizer { path: path.into() },
            }
            .into());
        }
        if path.exists() {
            return Self::from_file(path);
        }
        Self::from_file(&hub::fetch(name)?)
    }

    /// CLIP's tokenizer from OpenAI's list of merges, `bpe_simple_vocab_16e6.txt.gz`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for another file.
    pub fn clip(path: &Path, flavor: ClipFlavor) -> Result<Self> {
        let vocabulary = clip::vocabulary(clip::read_merges(path)?, flavor);
        let inner = clip::tokenizer(path, vocabulary, flavor)?;
        Ok(Self {
            flavor: Some(flavor),
            ..Self::of(path, inner)?
        })
    }

    fn from_file(path: &Path) -> Result<Self> {
        if clip::is_list_of_merges(path) {
            return Self::clip(path, ClipFlavor::OpenClip);
        }
        if let Some(files) = byte_level::Files::of(path)? {
            return Self::from_parts(&files);
        }
        let bytes = read(path)?;
        if sentence_piece::is_one(&bytes) {
            return Err(TextFault::SentencePiece { path: path.into() }.into());
        }
        let unusable = |fault: String| Error::Tokenizer {
            path: path.into(),
            fault,
        };
        // A vocabulary never begins with a brace: `{` is a token, but no file lists it first.
        let is_json = bytes.trim_ascii_start().starts_with(b"{\n")
            || path
                .extension()
                .is_some_and(|extension| extension == "json");
        let inner = if is_json {
            growth::check(&bytes).map_err(unusable)?;
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?
        } else {
            vocabulary::bert_uncased(path, &bytes)?
        };
        Self::of(path, inner)
    }

    fn from_parts(files: &byte_level::Files) -> Result<Self> {
        let vocabulary = byte_level::read(files)?;
        let [first, _] = ClipFlavor::HuggingFace.borders();
        let is_clip = vocabulary.ids.iter().any(|(token, _)| token == first);
        let inner = match is_clip {
            true => clip::tokenizer(&files.ids, vocabulary, ClipFlavor::HuggingFace)?,
            false => byte_level::roberta(&files.ids, vocabulary)?,
        };
        Ok(Self {
            merges: Some(files.merges.clone()),
            ..Self::of(&files.ids, inner)?
        })
    }

    fn of(path: &Path, mut inner: tokenizers::Tokenizer) -> Result<Self> {
        // Lengths are ours to choose.
        inner.with_padding(None);
        (inner.with_truncation(None)).map_err(|error| Error::Tokenizer {
            path: path.into(),
            fault: error.to_string(),
        })?;
        Ok(Self {
            path: path.into(),
            merges: None,
            special: Special::find(path, &inner)?,
            kind: Kind::of(&inner),
            flavor: None,
            ends_at_largest: false,
            inner,
        })
    }

    /// The same with tokens added behind its others, those that it lacks. Spaces beside them are no part
    /// of the text. FLM adds [`CAPTION_BORDERS`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a token cannot be added.
    pub fn with_added(mut self, tokens: &[&str]) -> Result<Self> {
        for &token in tokens {
            if self.inner.token_to_id(token).is_none() {
                let token = AddedToken::from(token, false).normalized(false);
                let token = token.lstrip(true).rstrip(true);
                let added = self.inner.add_tokens([token]);
                added.map_err(|error| Error::Tokenizer {
                    path: self.path.clone(),
                    fault: error.to_string(),
                })?;
            }
        }
        Ok(self)
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files it was read from.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        [&self.path]
            .into_iter()
            .chain(&self.merges)
            .cloned()
            .collect()
    }

    /// The number of ids, counted to the largest.
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

    /// The tokens that are not of a text.
    #[must_use]
    pub fn special(&self) -> Special {
        self.special
    }

    /// The id that fills short texts up.
    #[must_use]
    pub fn padding_id(&self) -> u32 {
        self.special.padding
    }

    /// The ids of a text with its special tokens: a longer one is cut, its last token then the
    /// separator; a shorter one is filled up.
    ///
    /// # Errors
    /// [`Error::Tokenization`] when the tokenizer refuses the text; [`TextFault::NotTheEnd`] where a model takes the row of
    /// the largest token for that of the end, and another token or padding is larger.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Encoded> {
        let mut ids = self.ids(text)?;
        if ids.len() > max_len {
            ids.truncate(max_len);
            if let Some(last) = ids.last_mut() {
                *last = self.special.borders[1];
            }
        }
        let n_tokens = ids.len();
        ids.resize(max_len, self.special.padding);
        let end = self.special.borders[1];
        match ids.iter().find(|id| self.ends_at_largest && **id > end) {
            None => Ok(Encoded { ids, n_tokens }),
            Some(&id) => Err(TextFault::NotTheEnd {
                path: self.path.clone(),
                token: self.inner.id_to_token(id).unwrap_or_default(),
                id,
                end,
            }
            .into()),
        }
    }

    /// The number of a text's tokens, special ones included, before it is cut.
    ///
    /// # Errors
    /// As [`encode`](Self::encode)'s.
    pub fn count(&self, text: &str) -> Result<usize> {
        self.ids(text).map(|ids| ids.len())
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        // The published class of byte-level tokenizers has no tokens for spaces alone.
        let text = match self.kind {
            Kind::ByteLevel if text.trim().is_empty() => "",
            _ => text,
        };
        let cleaned = self.flavor.map(|flavor| flavor.clean(text));
        let text = cleaned.as_deref().unwrap_or(text);
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding.map_err(|error| refused(text, &*error))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Kind {
    fn of(inner: &tokenizers::Tokenizer) -> Self {
        use tokenizers::{DecoderWrapper, ModelWrapper, PreTokenizerWrapper};
        fn cuts_bytes(part: &PreTokenizerWrapper) -> bool {
            match part {
                PreTokenizerWrapper::ByteLevel(_) => true,
                PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().any(cuts_bytes),
                _ => false,
            }
        }
        match inner.get_model() {
            ModelWrapper::WordPiece(_) => Self::WordPiece,
            ModelWrapper::BPE(_)
                if inner.get_pre_tokenizer().is_some_and(cuts_bytes)
                    || matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) =>
            {
                Self::ByteLevel
            }
            _ => Self::Other,
        }
    }
}

/// The error for a text that the tokenizer refuses.
fn refused(text: &str, fault: &dyn std::error::Error) -> Error {
    Error::Tokenization {
        text: text.chars().take(80).collect(),
        fault: fault.to_string(),
    }
}

/// Reads a file of a tokenizer.
fn read(path: &Path) -> Result<Vec<u8>> {
    file::read_at_most(path, MAX_TOKENIZER_BYTES)
}
