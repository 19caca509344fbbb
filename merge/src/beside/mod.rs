//! Files beside the weights of a model: its configuration, its tokenizer, its processor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use travel::{Files, fits, is_below, travelling};

use crate::io::{self, GgufHead, SourceFile, model_folder};
use crate::remote::{self, address::is_address};
use crate::{Error, MergeFault, Result};

pub mod byte_alphabet;
pub(crate) mod card;
pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod differences;
pub(crate) mod experts;
pub(crate) mod forms;
pub(crate) mod layers;
pub(crate) mod license;
pub(crate) mod tokenizer;
pub(crate) mod travel;
pub(crate) mod vocabulary;

pub use license::License;

/// Files that say what tokens there are, and how texts become tokens.
const TOKENIZER_NAMES: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "*.spm",
    "tekken.json",
];

/// Tokenizers of a quarter of a million tokens have some 30 MB.
const MAX_BYTES: u64 = 256 << 20;

/// A file that is written beside the merged weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Companion {
    /// Its name, with a folder where it is in one.
    pub name: String,
    /// Its content.
    #[serde(skip)]
    pub content: Content,
    /// The reason, in a few words for the printed plan.
    pub why: String,
}

impl Companion {
    /// A JSON file with a value, and the reason for it.
    pub(crate) fn json(name: &str, value: &Value, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            content: Content::json(value),
            why: why.to_owned(),
        }
    }
}

/// The content of a companion file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The same as in another file, here or by its address.
    Copy(PathBuf),
    /// This text.
    Text(String),
}

impl Content {
    /// A value as indented text.
    pub(crate) fn json(value: &Value) -> Self {
        Self::Text(format!("{value:#}\n"))
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::Copy(path) => read_bytes(path),
        }
    }
}

/// A model that went into a merge, as the model card names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ingredient {
    /// Its name in the recipe, without folders.
    pub name: String,
    /// Its share in the merge.
    pub share: Share,
    /// Its name on the hub, if its path says so.
    pub hub: Option<String>,
    /// The license in its own card.
    pub license: Option<License>,
    /// A note on an oddity that may be meant.
    pub note: Option<String>,
}

/// The share of a model in a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Differences are measured from it.
    Base,
    /// Its weights are merged.
    Merged,
    /// It is merged into a model first.
    Adapter,
    /// The output is made of it alone.
    Converted,
    /// Its networks are experts.
    Expert,
    /// The output has its tokens.
    Tokens,
}

/// Everything that goes beside the output of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Files from the inputs, by name.
    pub files: Vec<Companion>,
    /// The models that are merged, in the order of the recipe, the base last.
    pub ingredients: Vec<Ingredient>,
    /// Notes for users.
    pub notes: Vec<String>,
    /// The name of the weights for loaders, without the ending, if not `model`.
    pub weights: Option<&'static str>,
    /// The files beside the models as they were before the first of them was read.
    pub(crate) seen: Vec<SourceFile>,
    /// The facts beside the output's tensors if it is a GGUF file.
    pub(crate) gguf: Option<Arc<GgufHead>>,
}

/// The companion files of one model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Companions(pub(crate) BTreeMap<String, Content>);

impl Companions {
    /// Those beside a model, here or by its address.
    pub(crate) fn of_model(path: &Path) -> Result<Self> {
        let files = if is_address(path) {
            let files = remote::neighbors(path)?.into_iter();
            Files::There(files.filter(|(name, _)| is_below(name)).collect())
        } else {
            match model_folder(path) {
                Some(folder) => Files::Here(folder),
                None => return Ok(Self::default()),
            }
        };
        let files = travelling(&files)?.into_iter();
        Ok(Self(
            files
                .map(|(name, path)| (name, Content::Copy(path)))
                .collect(),
        ))
    }

    /// Those that a plan writes.
    pub(crate) fn of_plan(beside: &Beside) -> Self {
        let files = beside.files.iter();
        Self(
            files
                .map(|file| (file.name.clone(), file.content.clone()))
                .collect(),
        )
    }

    /// The text of a file, if it is there, and its path for messages.
    pub(crate) fn text(&self, name: &str) -> Result<Option<(PathBuf, String)>> {
        Ok(match self.0.get(name) {
            None => None,
            Some(Content::Text(text)) => Some((name.into(), text.clone())),
            Some(Content::Copy(path)) => Some((path.clone(), read_text(path)?)),
        })
    }

    /// A file of settings, which is a JSON object, if it is there.
    pub(crate) fn settings(&self, name: &str) -> Result<Option<Value>> {
        let found = self.text(name)?;
        found
            .map(|(path, text)| config::parsed(&text, &path))
            .transpose()
    }

    /// Whether a file among them says what the tokens are.
    pub(crate) fn has_tokenizer(&self) -> bool {
        self.0.keys().any(|name| is_of_tokenizer(name))
    }

    /// Takes everything about tokens from another model: the tokenizer's files of any name, and templates of chats,
    /// which spell tokens out.
    pub(crate) fn with_tokens_of(mut self, other: &Self) -> Self {
        self.0.retain(|name, _| !is_about_tokens(name));
        let files = other.0.iter().filter(|(name, _)| is_about_tokens(name));
        self.0
            .extend(files.map(|(name, content)| (name.clone(), content.clone())));
        self
    }

    /// Takes the tokenizer's files from another model.
    pub(crate) fn with_tokenizer_of(mut self, other: &Self) -> Self {
        self.0.retain(|name, _| !is_of_tokenizer(name));
        let files = other.0.iter().filter(|(name, _)| is_of_tokenizer(name));
        self.0
            .extend(files.map(|(name, content)| (name.clone(), content.clone())));
        self
    }
}

/// The text of a file beside a model, here or by its address; `None` if there is none of this name.
///
/// # Errors
/// When it cannot be read, or is longer than 256 MiB.
pub fn text_beside(model: &Path, name: &str) -> Result<Option<String>> {
    let found = Companions::of_model(model)?.text(name)?;
    Ok(found.map(|(_, text)| text))
}

/// Whether a file says what tokens there are, or how texts become tokens.
fn is_of_tokenizer(name: &str) -> bool {
    TOKENIZER_NAMES.iter().any(|pattern| fits(pattern, name))
}

/// Whether a file says what tokens there are, how texts become tokens, or spells tokens out.
pub(crate) fn is_about_tokens(name: &str) -> bool {
    /// Beside [`TOKENIZER_NAMES`], in lower case.
    const MORE: [&str; 13] = [
        "*tokens*.json",
        "*tokenizer*.json",
        "*vocab*.json",
        "*vocab*.txt",
        "vocab.bpe",
        "bpe.codes",
        "dict*.txt",
        "normalizer.json",
        "tokenizer.model.*",
        "*.model",
        "chat_template*",
        "*.jinja",
        "additional_chat_templates/*",
    ];
    let lower = name.to_lowercase();
    is_of_tokenizer(name) || MORE.iter().any(|pattern| fits(pattern, &lower))
}

/// A file of bounded length, here or by its address.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let file = io::open_bytes(path)?;
    let n_bytes = file.n_bytes();
    if n_bytes > MAX_BYTES {
        return Err(bad(path, "longer than 256 MiB").into());
    }
    let mut bytes = vec![0; n_bytes as usize];
    (file.read_exact_at(&mut bytes, 0)).map_err(|source| Error::io("read", path, source))?;
    // A license may be a web page; what programs read is none.
    let is_read = path
        .extension()
        .is_some_and(|name| name != "md" && name != "html" && name != "txt");
    let looks_like = io::not_fetched(&bytes);
    if let Some(looks_like) = looks_like.filter(|found| is_read || found.contains("git-lfs")) {
        return Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: looks_like.into(),
        });
    }
    Ok(bytes)
}

/// Likewise, as text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| bad(path, "no UTF-8").into())
}

/// The fault of a companion file.
fn bad(path: &Path, reason: impl Into<String>) -> MergeFault {
    MergeFault::Companion {
        path: path.into(),
        reason: reason.into(),
    }
}
