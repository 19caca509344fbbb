//! Which file of a folder is the model.

use std::path::{Path, PathBuf};

use crate::{Error, Result, SplitFault};

/// What the index of a split model is called.
const INDEX_SUFFIX: &str = ".index.json";

/// Extensions of single model files, the better first.
const MODEL_EXTENSIONS: [&[&str]; 2] = [&["safetensors"], &["bin", "pt", "pth", "ckpt"]];

/// Names by which programs look for the model of a folder first.
const MODEL_STEMS: [&str; 2] = ["model", "pytorch_model"];

/// The index of the folder, or else its single model file.
///
/// # Errors
/// When there is none, or several of the same rank.
pub(super) fn model_file(folder: &Path) -> Result<PathBuf> {
    model_among(folder, &names(folder)?)
}

/// The same of a folder whose files are called `names`, sorted.
///
/// # Errors
/// When there is none, or several of the same rank.
pub(crate) fn model_among(folder: &Path, names: &[String]) -> Result<PathBuf> {
    let indices = names.iter().filter(|name| name.ends_with(INDEX_SUFFIX));
    let ranks = std::iter::once(indices.collect()).chain(MODEL_EXTENSIONS.map(|extensions| {
        names
            .iter()
            .filter(|name| {
                let extension = name.rsplit_once('.').map(|(_, extension)| extension);
                extension.is_some_and(|extension| extensions.contains(&extension))
            })
            .collect::<Vec<_>>()
    }));
    for candidates in ranks {
        match choose(&candidates) {
            Choice::None => {}
            Choice::One(name) if is_shard(name) => {
                return Err(SplitFault::LoneShard {
                    folder: folder.into(),
                    shard: name.to_owned(),
                }
                .into());
            }
            Choice::One(name) => return Ok(folder.join(name)),
            Choice::Several => {
                return Err(SplitFault::SeveralModels {
                    folder: folder.into(),
                    files: candidates.into_iter().cloned().collect(),
                }
                .into());
            }
        }
    }
    Err(SplitFault::NoModel {
        folder: folder.into(),
    }
    .into())
}

/// The folder that a model stands for as a whole: the folder itself, or that of a file with a usual
/// name, such as `model.safetensors` or its index.
pub(crate) fn model_folder(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_owned());
    }
    let folder = match path.parent()? {
        folder if folder == Path::new("") => Path::new("."),
        folder => folder,
    };
    (is_model_name(path) && folder.is_dir()).then(|| folder.to_owned())
}

/// Whether a file has a name by which programs look for the model of a folder, or for its index.
pub(crate) fn is_model_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.split_once('.'));
    stem.is_some_and(|(stem, _)| MODEL_STEMS.contains(&stem))
}

/// Names of the folder's visible files, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("read", folder, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

enum Choice<'a> {
    None,
    One(&'a str),
    Several,
}

fn choose<'a>(candidates: &[&'a String]) -> Choice<'a> {
    let usual = candidates.iter().find(|name| {
        name.split_once('.')
            .is_some_and(|(stem, _)| MODEL_STEMS.contains(&stem))
    });
    match (candidates, usual) {
        ([], _) => Choice::None,
        (_, Some(name)) => Choice::One(name),
        ([name], None) => Choice::One(name),
        // All of them shards: the first stands for the fault.
        ([name, ..], None) if candidates.iter().all(|name| is_shard(name)) => Choice::One(name),
        _ => Choice::Several,
    }
}

/// Whether a file is called like a part of a split model, `stem-00001-of-00003.extension`.
fn is_shard(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.rsplit_once("-of-").is_some_and(|(before, total)| {
        let number = before.rsplit_once('-').map_or("", |(_, number)| number);
        is_number(number) && is_number(total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert!(is_shard("model-00001-of-00003.safetensors"));
        assert!(!is_shard("model.safetensors"));
        assert!(!is_shard("best-of-3.pt"));
    }
}
