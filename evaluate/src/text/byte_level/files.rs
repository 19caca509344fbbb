//! The files of a byte-level vocabulary: `vocab.json` or fairseq's `dict.txt`, and `merges.txt`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::{Vocabulary, alphabet};
use crate::text::read as read_bytes;
use crate::{Error, Result, TextFault};

/// The longest token that is read.
const MAX_TOKEN_BYTES: usize = 1024;

/// Names of the list of merges: Hugging Face's and GPT-2's.
const MERGES: [&str; 2] = ["merges.txt", "vocab.bpe"];
/// Names of the list of ids: Hugging Face's and fairseq's.
const IDS: [&str; 2] = ["vocab.json", "dict.txt"];

/// The first token after the bytes and merges of GPT-2.
const END_OF_TEXT: &str = "<|endoftext|>";
/// Tokens that fairseq puts before and after those of its `dict.txt`.
const BEFORE: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const AFTER: &str = "<mask>";

/// The two files of a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Tokens and their ids.
    pub ids: PathBuf,
    /// Pairs that are joined.
    pub merges: PathBuf,
}

impl Files {
    /// The files of a folder that holds at least one of them.
    ///
    /// # Errors
    /// [`TextFault::MissingPart`] when the other one is not there.
    pub fn in_folder(folder: &Path) -> Result<Option<Self>> {
        let find = |names: [&str; 2]| {
            let mut paths = names.into_iter().map(|name| folder.join(name));
            paths.find(|path| path.is_file())
        };
        let missing = |found: &Path, lacks: [&str; 2]| TextFault::MissingPart {
            path: found.into(),
            lacks: lacks.join(" or "),
        };
        Ok(match (find(IDS), find(MERGES)) {
            (None, None) => None,
            (Some(ids), Some(merges)) => Some(Self { ids, merges }),
            (Some(ids), None) => return Err(missing(&ids, MERGES).into()),
            (None, Some(merges)) => return Err(missing(&merges, IDS).into()),
        })
    }

    /// The files of which `path` is one; none where its name or content is that of another kind.
    ///
    /// # Errors
    /// As [`in_folder`](Self::in_folder)'s, and when the file cannot be read.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let name = path.file_name().and_then(|name| name.to_str());
        let is_part = name.is_some_and(|name| IDS.contains(&name) || MERGES.contains(&name));
        if !is_part {
            return Ok(None);
        }
        let Some(beside) = Self::in_folder(path.parent().unwrap_or(Path::new("")))? else {
            return Ok(None);
        };
        Ok(Some(match name.is_some_and(|name| IDS.contains(&name)) {
            true => Self {
                ids: path.into(),
                ..beside
            },
            false => Self {
                merges: path.into(),
                ..beside
            },
        }))
    }
}

/// Reads a vocabulary.
///
/// # Errors
/// When a file is too large or damaged; file and line or token are named.
pub fn read(files: &Files) -> Result<Vocabulary> {
    let merges = merges(&files.merges)?;
    let bytes = read_bytes(&files.ids)?;
    let is_json = files.ids.extension().is_some_and(|ending| ending == "json");
    let ids = match is_json {
        true => vocab_json(&files.ids, &bytes)?,
        false => dict(&files.ids, &bytes, &merges)?,
    };
    Ok(Vocabulary { ids, merges })
}

fn bad_line(path: &Path, index: usize, fault: impl Into<String>) -> Error {
    Error::BadLine {
        path: path.into(),
        line: index + 1,
        fault: fault.into(),
    }
}

/// The lines of a file, without an empty one at its end.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<&'a str>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let index = before.iter().filter(|&&byte| byte == b'\n').count();
        bad_line(path, index, "is not UTF-8")
    })?;
    let lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    Ok(lines.map(|line| line.trim_end_matches('\r')).collect())
}

/// The pairs of `merges.txt`, behind a line that says its version.
fn merges(path: &Path) -> Result<Vec<(String, String)>> {
    let bytes = read_bytes(path)?;
    let mut pairs = Vec::new();
    for (index, line) in lines(path, &bytes)?.into_iter().enumerate() {
        if index == 0 && line.starts_with("#version") {
            continue;
        }
        if line.len() > 2 * MAX_TOKEN_BYTES {
            let fault = format!("is longer than {} bytes", 2 * MAX_TOKEN_BYTES);
            return Err(bad_line(path, index, fault));
        }
        match line.split_once(' ') {
            Some((left, right))
                if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
            {
                pairs.push((left.to_owned(), right.to_owned()));
            }
            _ => {
                let fault = "is no pair of tokens with one space between them";
                return Err(bad_line(path, index, fault));
            }
        }
    }
    Ok(pairs)
}

/// The ids of `vocab.json`: every number from 0 once.
fn vocab_json(path: &Path, bytes: &[u8]) -> Result<Vec<(String, u32)>> {
    let unusable = |fault: String| Error::Tokenizer {
        path: path.into(),
        fault,
    };
    let ids: HashMap<String, u32> = serde_json::from_slice(bytes)
        .map_err(|error| unusable(format!("it is no JSON object of tokens and ids: {error}")))?;
    let mut ids: Vec<(String, u32)> = ids.into_iter().collect();
    ids.sort_unstable_by(|(a, i), (b, j)| (i, a).cmp(&(j, b)));
    for (index, (token, id)) in ids.iter().enumerate() {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(unusable(format!(
                "the token of id {id} is longer than {MAX_TOKEN_BYTES} bytes"
            )));
        }
        if *id as usize != index {
            return Err(unusable(format!(
                "its ids must be 0 to {} without gaps, but {token:?} has {id} where {index} is next",
                ids.len() - 1
            )));
        }
    }
    Ok(ids)
}

/// The ids of fairseq: four special tokens, the lines of `dict.txt`, then the mask. A line has GPT-2's
/// id of a token, or a word that stands for itself, and a count.
fn dict(path: &Path, bytes: &[u8], merges: &[(String, String)]) -> Result<Vec<(String, u32)>> {
    let bytes_first = alphabet::in_order_of_gpt2().map(String::from);
    let joined = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens: Vec<String> = bytes_first
        .chain(joined)
        .chain([END_OF_TEXT.to_owned()])
        .collect();
    let mut ordered: Vec<String> = BEFORE.map(str::to_owned).into();
    let mut seen = HashSet::new();
    for (index, line) in lines(path, bytes)?.into_iter().enumerate() {
        if line.len() > MAX_TOKEN_BYTES {
            let fault = format!("is longer than {MAX_TOKEN_BYTES} bytes");
            return Err(bad_line(path, index, fault));
        }
        let word = match line.split_once(' ') {
            Some((word, count)) if !word.is_empty() && count.parse::<u64>().is_ok() => word,
            _ => {
                return Err(bad_line(
                    path,
                    index,
                    "is no id of GPT-2 with a count behind it",
                ));
            }
        };
        let token = match word.parse::<usize>() {
            Ok(id) => tokens.get(id).cloned().ok_or_else(|| {
                let n = tokens.len();
                let fault = format!("has GPT-2's id {id}, but its merges make {n} tokens");
                bad_line(path, index, fault)
            })?,
            Err(_) => word.to_owned(),
        };
        if BEFORE.contains(&token.as_str()) || token == AFTER || !seen.insert(token.clone()) {
            return Err(bad_line(path, index, format!("repeats token {token:?}")));
        }
        ordered.push(token);
    }
    ordered.push(AFTER.to_owned());
    Ok(ordered.into_iter().zip(0..).collect())
}
