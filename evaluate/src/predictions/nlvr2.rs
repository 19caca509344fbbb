//! NLVR2: the official prediction csv and example jsonl.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::file;
use crate::{Error, JudgedFault, Result};

/// The examples of a split, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Identifier and whether the sentence is true.
    pub examples: Vec<(String, bool)>,
}

#[derive(Deserialize)]
struct Example {
    identifier: String,
    label: String,
}

/// Reads the official file of examples: a JSON object per line with `identifier` and `label`.
///
/// # Errors
/// [`Error::BadLine`] naming the line, [`Error::DuplicateId`], [`Error::Empty`], and what opening
/// and reading the file may return.
pub fn read_labels(path: &Path) -> Result<Labels> {
    let mut examples = Vec::new();
    file::lines(path, |_, text| {
        if text.starts_with('[') {
            return Err(
                "is a JSON list; a JSON object per line is expected, as in the official files"
                    .into(),
            );
        }
        let example: Example =
            serde_json::from_str(text).map_err(|fault| format!("is no example: {fault}"))?;
        let is_true = truth(&example.label)?;
        examples.push((example.identifier, is_true));
        Ok(())
    })?;
    if examples.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "examples",
        });
    }
    let ids = examples.iter().map(|(id, _)| id.as_str());
    refuse_duplicates(path, ids)?;
    Ok(Labels { examples })
}

/// Predictions by identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predictions {
    by_id: HashMap<String, bool>,
}

/// Reads the official file of predictions: lines of `identifier,true` or `identifier,false`, in any
/// case of letters.
///
/// # Errors
/// [`Error::BadLine`] naming the line, [`Error::DuplicateId`], and what opening and reading the
/// file may return.
pub fn read_predictions(path: &Path) -> Result<Predictions> {
    let mut predictions = Vec::new();
    file::lines(path, |_, text| {
        let (id, said) = text
            .split_once(',')
            .ok_or("expected an identifier, a comma and true or false")?;
        predictions.push((id.trim().to_owned(), truth(said.trim())?));
        Ok(())
    })?;
    refuse_duplicates(path, predictions.iter().map(|(id, _)| id.as_str()))?;
    Ok(Predictions {
        by_id: predictions.into_iter().collect(),
    })
}

fn truth(said: &str) -> Result<bool, String> {
    match said {
        _ if said.eq_ignore_ascii_case("true") => Ok(true),
        _ if said.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(format!("{said:?} is neither true nor false")),
    }
}

fn refuse_duplicates<'a>(path: &Path, ids: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(Error::DuplicateId {
                path: path.into(),
                what: "example",
                id: id.to_owned(),
            });
        }
    }
    Ok(())
}

/// The verdict on each example, in the order of the labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts<'a> {
    /// Identifier and whether the prediction is right.
    pub examples: Vec<(&'a str, bool)>,
    /// Predictions for other examples. The official program allows them, so that one file can be
    /// judged on the balanced part of a split.
    pub n_unused: usize,
}

/// Compares predictions with labels. `path` is the file of predictions.
///
/// # Errors
/// [`JudgedFault::MissingPredictions`].
pub fn judge<'a>(
    path: &Path,
    predictions: &Predictions,
    labels: &'a Labels,
) -> Result<Verdicts<'a>> {
    let missing = || {
        let ids = labels.examples.iter().map(|(id, _)| id);
        ids.filter(|id| !predictions.by_id.contains_key(*id))
    };
    if let Some(first) = missing().next() {
        return Err(JudgedFault::MissingPredictions {
            path: path.into(),
            what: "example",
            first: first.clone(),
            n_missing: missing().count(),
            n: labels.examples.len(),
        }
        .into());
    }
    let examples = labels.examples.iter();
    Ok(Verdicts {
        examples: examples
            .map(|(id, label)| (id.as_str(), predictions.by_id.get(id) == Some(label)))
            .collect(),
        n_unused: predictions.by_id.len() - labels.examples.len(),
    })
}

/// The official prediction csv: `identifier,True` or `identifier,False` and a line break for each.
///
/// # Example
/// ```
/// let csv = evaluate::predictions::nlvr2::csv([("dev-0-0-0", true), ("dev-0-1-0", false)]);
/// assert_eq!(csv, "dev-0-0-0,True\ndev-0-1-0,False\n");
/// ```
#[must_use]
pub fn csv<'a>(predictions: impl IntoIterator<Item = (&'a str, bool)>) -> String {
    let lines = predictions.into_iter();
    lines
        .map(|(id, is_true)| format!("{id},{}\n", if is_true { "True" } else { "False" }))
        .collect()
}
