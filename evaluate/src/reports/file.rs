//! Reports in and out.

use std::path::Path;

use merge::distance::report::{self as distances, DistanceReport};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Course, Item, Report, SCHEMA, html};
use crate::text::file;
use crate::{Error, ReportFault, Result};

/// The largest file that is read: thousands of results with their pictures.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The contents of a file of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Measurements on data.
    Report(Report),
    /// Distances of weights.
    Distances(DistanceReport),
    /// The course of a training run.
    Course(Course),
}

/// The field that every file of ours begins with.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    schema: Option<String>,
}

/// Reads what `vlmerge evaluate`, `sweep` or `score` wrote as JSON. Fields that are not known are
/// passed over, so that later versions may add some.
///
/// # Errors
/// When the file cannot be read, is damaged (with line and column), is of another kind
/// ([`ReportFault::ReportSchema`]) or contradicts itself ([`ReportFault::BadReport`]).
pub fn read(path: &Path) -> Result<Report> {
    match read_source(path)? {
        Source::Report(report) => Ok(report),
        Source::Distances(_) | Source::Course(_) => Err(Error::Report(ReportFault::ReportSchema {
            path: path.into(),
            fault: format!("it is of schema `{}`", distances::SCHEMA),
        })),
    }
}

/// Reads a report or the distances that `vlmerge distance --json` printed, as the file says itself.
///
/// # Errors
/// As [`read`].
pub fn read_source(path: &Path) -> Result<Source> {
    let bytes = file::read_at_most(path, MAX_FILE_BYTES)?;
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Report(ReportFault::ReportSchema {
            path: path.into(),
            fault: "it is no JSON object".to_owned(),
        }));
    }
    let header: Header = parsed(path, &bytes, "a JSON object")?;
    match header.schema.as_deref() {
        Some(SCHEMA) => {
            let report = parsed(path, &bytes, "a report")?;
            check(&report).map_err(|fault| {
                Error::Report(ReportFault::BadReport {
                    path: path.into(),
                    fault,
                })
            })?;
            Ok(Source::Report(report))
        }
        Some(distances::SCHEMA) => Ok(Source::Distances(parsed(path, &bytes, "distances")?)),
        other => Err(Error::Report(ReportFault::ReportSchema {
            path: path.into(),
            fault: match other {
                Some(schema) => format!("its schema `{schema}` is not known"),
                None => "it has no `schema`".to_owned(),
            },
        })),
    }
}

/// Writes a report in place of the old one, if there is one: beside it, synced, renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(report).map_err(|source| Error::Json {
        path: path.into(),
        what: "representable",
        source,
    })?;
    text.push(b'\n');
    Ok(merge::io::write_file(path, &text, true)?)
}

fn parsed<T: DeserializeOwned>(path: &Path, bytes: &[u8], what: &'static str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        path: path.into(),
        what,
        source,
    })
}

/// Checks what the form alone does not say.
fn check(report: &Report) -> Result<(), String> {
    let n = report.results.len();
    for (index, comparison) in report.comparisons.iter().enumerate() {
        for of in [comparison.result, comparison.against] {
            if of >= n {
                return Err(format!(
                    "comparison {index} is of result {of}, and there are {n}"
                ));
            }
        }
    }
    for result in &report.results {
        for example in &result.examples {
            let retrieved = example.retrieved.iter().map(|r| &r.item);
            for item in retrieved.chain([&example.query]).chain(&example.right) {
                if let Item::Image { id, thumbnail } = item
                    && !html::is_embedded_picture(thumbnail)
                {
                    let id = id.clone();
                    return Err(format!(
                        "result `{}`: {}",
                        result.name,
                        Error::Report(ReportFault::Thumbnail { id })
                    ));
                }
            }
        }
    }
    Ok(())
}
