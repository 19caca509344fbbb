//! Names of weights in results, and of the files of their predictions: no two are the same.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use anyhow::Result;
use merge::remote::address::is_address;

use crate::output::UsageError;

/// Endings of checkpoints and recipes, which a file of predictions has none of.
const ENDINGS: [&str; 13] = [
    "safetensors",
    "ckpt",
    "pt",
    "pth",
    "th",
    "bin",
    "gguf",
    "msgpack",
    "npz",
    "h5",
    "onnx",
    "yaml",
    "yml",
];

/// The source of a name.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// The user gave it.
    By(&'a str),
    /// It comes from a path.
    After(&'a Path),
}

/// A name for each: the one that was given, or the shortest end of the path that tells it from all others.
///
/// # Errors
/// [`UsageError`] for a name or a path that comes twice.
pub fn distinct(all: &[Named<'_>]) -> Result<Vec<String>> {
    let parts: Vec<Vec<String>> = all.iter().map(parts).collect::<Result<_>>()?;
    let mut depths = vec![1; all.len()];
    loop {
        let names: Vec<String> = (parts.iter().zip(&depths))
            .map(|(parts, &depth)| parts[parts.len().saturating_sub(depth)..].join("/"))
            .collect();
        let clashes = clashes(&names);
        if clashes.is_empty() {
            return Ok(names);
        }
        let mut is_longer = false;
        for &at in &clashes {
            if depths[at] < parts[at].len() {
                depths[at] += 1;
                is_longer = true;
            }
        }
        if !is_longer {
            let name = &names[clashes[0]];
            let what = match all[clashes[0]] {
                Named::By(_) => format!("two results would be called {name:?}; names must differ"),
                Named::After(path) => format!("{}: is given twice", path.display()),
            };
            return Err(UsageError(what).into());
        }
    }
}

/// The parts of a name: all of one that was given, or the components of a path.
fn parts(named: &Named<'_>) -> Result<Vec<String>> {
    let path = match named {
        Named::By(name) => return Ok(vec![(*name).to_owned()]),
        Named::After(path) => *path,
    };
    let parts: Vec<String> = if is_address(path) {
        let text = path.to_string_lossy();
        let parts = text.split('/').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    } else {
        let path = std::path::absolute(path)?;
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        });
        parts.collect()
    };
    match parts.is_empty() {
        true => Ok(vec![path.display().to_string()]),
        false => Ok(parts),
    }
}

/// The places of texts that come more than once.
fn clashes(texts: &[String]) -> Vec<usize> {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, text) in texts.iter().enumerate() {
        places.entry(text).or_default().push(at);
    }
    let clashing = places.into_values().filter(|places| places.len() > 1);
    clashing.flatten().collect()
}

/// A file name for a result, without the ending of a checkpoint: letters that would lead to another folder are `-`.
pub fn file_name(name: &str) -> String {
    let stem = name.rsplit_once('.').filter(|(stem, ending)| {
        let ending = ending.to_ascii_lowercase();
        !stem.is_empty() && ENDINGS.contains(&ending.as_str())
    });
    safe(stem.map_or(name, |(stem, _)| stem))
}

/// A file name for each result: [`file_name`], or with the ending where two would have the same.
///
/// # Errors
/// [`UsageError`] where the endings do not tell them apart either.
pub fn file_names(names: &[String]) -> Result<Vec<String>> {
    let mut files: Vec<String> = names.iter().map(|name| file_name(name)).collect();
    for at in clashes(&files) {
        files[at] = safe(&names[at]);
    }
    match clashes(&files).first() {
        None => Ok(files),
        Some(&at) => {
            let (file, name) = (&files[at], &names[at]);
            let what = format!(
                "the predictions of {name:?} and of another result would both be called {file:?}; give other names with --name"
            );
            Err(UsageError(what).into())
        }
    }
}

fn safe(name: &str) -> String {
    let safe = name.chars().map(|letter| match letter {
        '/' | '\\' | ':' => '-',
        letter if letter.is_control() => '-',
        letter => letter,
    });
    let safe: String = safe.collect();
    // A leading dot hides a file, or leads out of the folder.
    match safe.strip_prefix('.') {
        Some(rest) => format!("-{rest}"),
        None => safe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        let all: Vec<Named<'_>> = paths
            .iter()
            .map(|path| Named::After(path.as_ref()))
            .collect();
        distinct(&all).expect("names")
    }

    #[test]
    fn a_path_gives_the_shortest_end_that_no_other_has() {
        assert_eq!(names(&["runs/a.pt", "b.pt"]), ["a.pt", "b.pt"]);
        assert_eq!(
            names(&["a/model.safetensors", "b/model.safetensors", "c/x.pt"]),
            ["a/model.safetensors", "b/model.safetensors", "x.pt"]
        );
        assert_eq!(
            names(&["a/x/m.pt", "b/x/m.pt", "c/m.pt"]),
            ["a/x/m.pt", "b/x/m.pt", "c/m.pt"]
        );
        assert_eq!(
            names(&["hf://one/model", "hf://two/model"]),
            ["one/model", "two/model"]
        );
        let mixed = [Named::By("m.pt"), Named::After(Path::new("a/m.pt"))];
        assert_eq!(distinct(&mixed).expect("names"), ["m.pt", "a/m.pt"]);
    }

    #[test]
    fn a_name_or_a_path_that_comes_twice_is_refused() {
        let error = distinct(&[Named::By("x"), Named::By("x")]).expect_err("twice");
        assert!(error.to_string().contains("\"x\""), "{error}");
        let path = [Path::new("a/m.pt"), Path::new("./a/m.pt")].map(Named::After);
        let error = distinct(&path).expect_err("twice").to_string();
        assert!(error.ends_with("a/m.pt: is given twice"), "{error}");
    }

    #[test]
    fn files_of_predictions_have_names_of_their_own_in_their_folder() {
        let files = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            file_names(&names)
        };
        let found = files(&["a/model.safetensors", "b/model.safetensors", "../up.pt"]);
        assert_eq!(found.expect("names"), ["a-model", "b-model", "-.-up"]);
        // Numbers have no endings.
        let found = files(&["v1.5", "v1.0", "arithmetic lambda 0.25"]);
        assert_eq!(
            found.expect("names"),
            ["v1.5", "v1.0", "arithmetic lambda 0.25"]
        );
        let found = files(&["m.pt", "m.ckpt", "n.pt"]);
        assert_eq!(found.expect("names"), ["m.pt", "m.ckpt", "n"]);
        let error = files(&["a/b", "a-b"]).expect_err("the same").to_string();
        assert!(error.contains("--name"), "{error}");
    }
}
