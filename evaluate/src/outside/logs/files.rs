//! Which files of a run hold answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::OutsideFault;
use crate::{Error, Result};

/// Folders below the one that is named: the harnesses make one for each model.
const MAX_DEPTH: usize = 3;

/// The most files that are looked at.
const MAX_FILES: usize = 100_000;

/// The form of a file of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object of JSON a line.
    Lines,
    /// A table: CSV, TSV, or JSON of rows or columns.
    Table,
}

/// A file of answers to one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Its form.
    pub kind: Kind,
    /// The task, if the name says it.
    pub task: Option<String>,
    /// The results of the same run, if they lie beside it.
    pub results: Option<PathBuf>,
}

/// The facts in the name of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    task: String,
    /// The time of the run.
    stamp: String,
    /// The name of the results of the same run.
    results: String,
}

/// The task and the time in the name of a file of answers: `samples_TASK_TIME.jsonl` of lm-evaluation-harness,
/// `TIME_samples_TASK.jsonl` of lmms-eval.
fn named(name: &str) -> Option<Named> {
    let stem = name.strip_suffix(".jsonl")?;
    if let Some(rest) = stem.strip_prefix("samples_") {
        let (task, stamp) = rest.rsplit_once('_')?;
        return (is_time(stamp) && !task.is_empty()).then(|| Named {
            task: task.to_owned(),
            stamp: stamp.to_owned(),
            results: format!("results_{stamp}.json"),
        });
    }
    let (stamp, task) = stem.split_once("_samples_")?;
    let is_time = stamp.len() >= 8 && stamp.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    (is_time && !task.is_empty()).then(|| Named {
        task: task.to_owned(),
        stamp: stamp.to_owned(),
        results: format!("{stamp}_results.json"),
    })
}

/// Whether a part of a name is a time as lm-evaluation-harness writes it.
fn is_time(stamp: &str) -> bool {
    stamp.len() >= 10 && stamp.starts_with(|c: char| c.is_ascii_digit()) && stamp.contains('T')
}

/// The time of a run in the name of its results. With `--output_path NAME.json` lm-evaluation-harness calls them `NAME_TIME.json`.
fn stamp_of_results(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".json")?;
    let of_harness = stem.strip_prefix("results_");
    let of_harness = of_harness.or_else(|| stem.strip_suffix("_results"));
    of_harness.or_else(|| {
        let (_, stamp) = stem.rsplit_once('_')?;
        is_time(stamp).then_some(stamp)
    })
}

/// The results of the run that wrote a file of answers, beside it: under the usual name, or as the only file of JSON that has
/// the time of the run in its name.
fn results_beside(path: &Path, usual: &str) -> Option<PathBuf> {
    let expected = path.with_file_name(usual);
    if expected.is_file() {
        return Some(expected);
    }
    let stamp = stamp_of_results(usual)?;
    let folder = path.parent()?;
    let folder = if folder == Path::new("") {
        Path::new(".")
    } else {
        folder
    };
    let mut others = std::fs::read_dir(folder).ok()?.take(MAX_FILES).flatten();
    let is_other = |entry: &std::fs::DirEntry| {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        is_file && stamp_of_results(&entry.file_name().to_string_lossy()) == Some(stamp)
    };
    let found = others.by_ref().find(is_other)?;
    others.all(|entry| !is_other(&entry)).then(|| found.path())
}

/// The files of answers of a run, and notes on files that were left out.
pub fn find(path: &Path) -> Result<(Vec<Found>, Vec<String>)> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if metadata.is_dir() {
        return in_folder(path, path, None);
    }
    let name = name_of(path);
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    let kind = match ending.to_str() {
        Some("jsonl") => Kind::Lines,
        Some("csv" | "tsv") => Kind::Table,
        Some("json") => {
            let folder = match path.parent() {
                Some(folder) if folder != Path::new("") => folder,
                _ => Path::new("."),
            };
            match stamp_of_results(&name) {
                Some(stamp) => return in_folder(path, folder, Some(stamp)),
                None => Kind::Table,
            }
        }
        Some("xlsx" | "xls") => {
            return Err(Error::Outside(OutsideFault::Spreadsheet {
                path: path.into(),
            }));
        }
        _ => {
            return Err(no_answers(
                path,
                "its name ends in none of .jsonl, .csv, .tsv and .json",
            ));
        }
    };
    let named = named(&name);
    let results = named.as_ref();
    let results = results.and_then(|named| results_beside(path, &named.results));
    let found = Found {
        path: path.into(),
        kind,
        task: named.map(|named| named.task),
        results,
    };
    Ok((vec![found], Vec::new()))
}

/// The newest file of each task in a folder and those below; `stamp` takes the files of one run alone.
fn in_folder(
    asked: &Path,
    folder: &Path,
    stamp: Option<&str>,
) -> Result<(Vec<Found>, Vec<String>)> {
    let mut all = Vec::new();
    // Results say which answers are theirs by lying beside them.
    let depth = if stamp.is_some() { MAX_DEPTH } else { 0 };
    list(folder, depth, &mut all)?;
    let mut newest: BTreeMap<String, (String, PathBuf, String)> = BTreeMap::new();
    let mut n_older = 0;
    for path in &all {
        let Some(found) = named(&name_of(path)) else {
            continue;
        };
        if stamp.is_some_and(|stamp| stamp != found.stamp) {
            continue;
        }
        if let Some((known, other, _)) = newest.get(&found.task) {
            if other.parent() != path.parent() {
                return Err(no_answers(
                    asked,
                    format!(
                        "`{}` was answered in several folders: {} and {}; name one",
                        found.task,
                        other.display(),
                        path.display()
                    ),
                ));
            }
            n_older += 1;
            if *known >= found.stamp {
                continue;
            }
        }
        newest.insert(found.task, (found.stamp, path.clone(), found.results));
    }
    if newest.is_empty() {
        let is_spreadsheet =
            |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "xlsx");
        if let Some(path) = all.iter().find(is_spreadsheet) {
            return Err(Error::Outside(OutsideFault::Spreadsheet {
                path: path.clone(),
            }));
        }
        return Err(no_answers(
            asked,
            "no samples_TASK_TIME.jsonl or TIME_samples_TASK.jsonl lies there",
        ));
    }
    let notes = match n_older {
        0 => Vec::new(),
        n => vec![format!(
            "{}: {n} older files of the same tasks are left out",
            asked.display()
        )],
    };
    let found = newest.into_iter().map(|(task, (_, path, results))| Found {
        kind: Kind::Lines,
        task: Some(task),
        results: results_beside(&path, &results),
        path,
    });
    Ok((found.collect(), notes))
}

/// All files of a folder and those below, by name. No link is followed.
fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |source| Error::io("list", folder, source);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push((entry.path(), entry.file_type().map_err(failed)?));
    }
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    for (path, kind) in entries {
        if found.len() >= MAX_FILES {
            return Err(no_answers(
                folder,
                format!("more than {MAX_FILES} files lie there"),
            ));
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, found)?;
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn no_answers(path: &Path, fault: impl Into<String>) -> Error {
    Error::Outside(OutsideFault::NoAnswers {
        path: path.into(),
        fault: fault.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_harnesses_say_task_and_time() {
        let found =
            named("samples_mmlu_high_school_2024-05-01T12-00-00.123456.jsonl").expect("a name");
        assert_eq!(found.task, "mmlu_high_school");
        assert_eq!(found.results, "results_2024-05-01T12-00-00.123456.json");
        let found = named("20240501_120000_samples_mme.jsonl").expect("a name");
        assert_eq!(
            (found.task.as_str(), found.stamp.as_str()),
            ("mme", "20240501_120000")
        );
        assert_eq!(found.results, "20240501_120000_results.json");
        for other in [
            "samples_arc.jsonl",
            "answers.jsonl",
            "samples__2024-05-01T1.jsonl",
            "x_samples_y.jsonl",
        ] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
