//! What goes beside the weights of a model: its configuration, its tokenizer, its processor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::io::{self, model_folder};
use crate::remote::{self, address::is_address};
use crate::{Error, MergeFault, Result};

pub(crate) mod card;
pub(crate) mod config;
pub(crate) mod license;
pub(crate) mod tokenizer;
pub(crate) mod vocabulary;

pub use license::License;

/// Files that loaders look for beside weights, `*` standing for anything.
const NAMES: [&str; 26] = [
    "config.json",
    "generation_config.json",
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
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "image_processing_*.py",
    "video_processing_*.py",
    "feature_extraction_*.py",
];

/// Files among them that say what tokens there are, and how texts become tokens.
const TOKENIZER_NAMES: [&str; 11] = [
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
];

/// Tokenizers of a quarter of a million tokens have some 30 MB.
const MAX_BYTES: u64 = 256 << 20;

/// A file that is written beside the merged weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Companion {
    /// Its name, without folders.
    pub name: String,
    /// What is in it.
    #[serde(skip)]
    pub content: Content,
    /// Why, in a few words for the printed plan.
    pub why: String,
}

/// What is in a companion file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The same as in another file, here or by its address.
    Copy(PathBuf),
    /// This text.
    Text(String),
}

/// A model that went into a merge, as the model card names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ingredient {
    /// What the recipe calls it, without folders.
    pub name: String,
    /// What it gives.
    pub share: Share,
    /// Its name on the hub, if its path says so.
    pub hub: Option<String>,
    /// What its own card says of its license.
    pub license: Option<License>,
    /// What is odd about it, but may be meant.
    pub note: Option<String>,
}

/// What a model gives to a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Differences are measured from it.
    Base,
    /// Its weights are merged.
    Merged,
    /// It is merged into a model first.
    Adapter,
}

/// Everything that goes beside the output of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Files from the inputs, by name.
    pub files: Vec<Companion>,
    /// The models that are merged, in the order of the recipe, the base last.
    pub ingredients: Vec<Ingredient>,
}

/// The companion files of one model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Companions(pub(crate) BTreeMap<String, Content>);

impl Companions {
    /// Those beside a model, here or by its address.
    pub(crate) fn of_model(path: &Path) -> Result<Self> {
        if is_address(path) {
            let files = remote::neighbors(path)?.into_iter();
            let known = files.filter(|(name, _)| NAMES.iter().any(|pattern| fits(pattern, name)));
            return Ok(Self(
                known
                    .map(|(name, address)| (name, Content::Copy(address)))
                    .collect(),
            ));
        }
        match model_folder(path) {
            Some(folder) => Self::of_folder(&folder),
            None => Ok(Self::default()),
        }
    }

    /// Those in a folder.
    fn of_folder(folder: &Path) -> Result<Self> {
        let failed = |source| Error::io("read", folder, source);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().into_string()
                && NAMES.iter().any(|pattern| fits(pattern, &name))
                && entry.path().is_file()
            {
                files.insert(name, Content::Copy(entry.path()));
            }
        }
        Ok(Self(files))
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

    /// Whether a file among them says what the tokens are.
    pub(crate) fn has_tokenizer(&self) -> bool {
        let is_tokenizer = |name: &String| TOKENIZER_NAMES.iter().any(|p| fits(p, name));
        self.0.keys().any(is_tokenizer)
    }

    /// Takes the tokenizer's files from another model.
    pub(crate) fn with_tokenizer_of(mut self, other: &Self) -> Self {
        let is_tokenizer = |name: &String| TOKENIZER_NAMES.iter().any(|p| fits(p, name));
        self.0.retain(|name, _| !is_tokenizer(name));
        let files = other.0.iter().filter(|(name, _)| is_tokenizer(name));
        self.0
            .extend(files.map(|(name, content)| (name.clone(), content.clone())));
        self
    }
}

/// Whether a name fits a pattern with at most one `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= pattern.len() - 1 && name.starts_with(start) && name.ends_with(end)
        }
    }
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
    Ok(bytes)
}

/// Likewise, as text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| bad(path, "no UTF-8").into())
}

fn bad(path: &Path, reason: &str) -> MergeFault {
    MergeFault::Companion {
        path: path.into(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_known_by_their_names() {
        let is_known = |name: &str| NAMES.iter().any(|pattern| fits(pattern, name));
        assert!(is_known("tokenizer.json"));
        assert!(is_known("modeling_tiny.py"));
        assert!(is_known("qwen.tiktoken"));
        assert!(!is_known("train.py"));
        assert!(!is_known("model.safetensors"));
        assert!(!is_known("README.md"));
    }
}
