//! Runs of benchmarks by other programs, example by example: lm-evaluation-harness and lmms-eval with `--log_samples`,
//! and tables of VLMEvalKit.
//!
//! A [`Run`] holds for each task its examples, and of each the numbers that the program gave it. `docs/formats.md` says which
//! files and fields are read.

mod files;
mod lines;
mod record;
mod results;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::OutsideFault;
use crate::{Error, Result};
use files::{Found, Kind};
use record::{Fields, Reader};
use results::Facts;
pub(crate) use results::read as results_of;

/// The most examples of a run.
const MAX_EXAMPLES: usize = 20_000_000;

/// The choices of whoever reads a run.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Take this number of each example alone, whatever the program calls a metric.
    pub metric: Option<String>,
    /// Path of the field of an example that says which ones belong together.
    pub cluster_by: Option<String>,
}

/// The answers of one model to the tasks of a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The file or folder.
    pub path: PathBuf,
    /// By their names; one whose file has no name of a task has none.
    pub tasks: BTreeMap<Option<String>, TaskLog>,
    /// Notes for users on how it was read.
    pub notes: Vec<String>,
}

/// The answers of one model to a task.
#[derive(Clone, Debug, Default)]
pub struct TaskLog {
    /// The numbers that examples have, in the order of the file.
    pub metrics: Vec<String>,
    /// By their numbers or names.
    pub examples: BTreeMap<Id, Example>,
    /// The version of the task, and of how examples were shown, by the results beside the file.
    pub versions: BTreeMap<&'static str, String>,
    /// Metrics of which the results say that less is better.
    pub lower_is_better: Vec<String>,
}

/// The name of an example.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text}"),
        }
    }
}

/// A program's result for an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Distinguishes its content from that of other examples.
    pub content: Option<String>,
    /// Distinguishes what the model was shown.
    pub prompt: Option<String>,
    /// Distinguishes the expected answer.
    pub target: Option<String>,
    /// The cluster that it belongs to, if one was asked for.
    pub cluster: Option<String>,
    /// A number for each metric that it has.
    pub values: BTreeMap<String, f64>,
}

impl Run {
    /// Reads a run: a file of answers, a file of results with answers beside it, or a folder of them.
    ///
    /// # Errors
    /// [`OutsideFault::NoAnswers`] where no file holds answers, [`OutsideFault::Spreadsheet`],
    /// [`OutsideFault::BadRecord`] with the line of an example that cannot be read, [`OutsideFault::TwiceAnswered`],
    /// [`OutsideFault::NoMetrics`] where no task has a number for each example; a note names single tasks without one.
    pub fn open(path: &Path, wanted: &Wanted) -> Result<Self> {
        let (found, notes) = files::find(path)?;
        let mut run = Self {
            path: path.into(),
            tasks: BTreeMap::new(),
            notes,
        };
        let (mut n_examples, mut without) = (0, Vec::new());
        for file in found {
            let log = match read(&file, wanted) {
                // Another task of the run may have numbers: perplexities of words are none of single examples.
                Err(Error::Outside(fault @ OutsideFault::NoMetrics { .. })) => {
                    without.push(fault);
                    continue;
                }
                log => log?,
            };
            n_examples += log.examples.len();
            if n_examples > MAX_EXAMPLES {
                return Err(Error::Outside(OutsideFault::NoAnswers {
                    path: path.into(),
                    fault: format!("it holds more than {MAX_EXAMPLES} answers"),
                }));
            }
            run.tasks.insert(file.task, log);
        }
        if run.tasks.is_empty() && !without.is_empty() {
            return Err(without.swap_remove(0).into());
        }
        let left_out = without.iter().map(|fault| format!("left out: {fault}"));
        run.notes.extend(left_out);
        Ok(run)
    }
}

/// Reads the answers of a file.
fn read(file: &Found, wanted: &Wanted) -> Result<TaskLog> {
    let facts = match &file.results {
        Some(path) => Facts::open(path, file.task.as_deref())?,
        None => Facts::default(),
    };
    let mut log = TaskLog {
        versions: facts.versions,
        lower_is_better: facts.lower_is_better,
        ..TaskLog::default()
    };
    let mut reader = Reader::new(wanted, file.kind == Kind::Lines);
    let mut each = |line: usize, fields: &Fields| -> Result<()> {
        let bad = |fault: String| {
            Error::Outside(OutsideFault::BadRecord {
                path: file.path.clone(),
                line,
                fault,
            })
        };
        let (id, read) = reader.example(fields).map_err(bad)?;
        for metric in read.values.keys() {
            if !log.metrics.contains(metric) {
                log.metrics.push(metric.clone());
            }
        }
        let known = log.examples.entry(id.clone()).or_default();
        if let Some(metric) = read.values.keys().find(|m| known.values.contains_key(*m)) {
            return Err(Error::Outside(OutsideFault::TwiceAnswered {
                path: file.path.clone(),
                line,
                id: id.to_string(),
                metric: metric.clone(),
            }));
        }
        if known.content.is_some() && known.content != read.content {
            return Err(bad(format!(
                "is another example {id} than an earlier line says"
            )));
        }
        let values = std::mem::take(&mut known.values);
        *known = read;
        known.values.extend(values);
        Ok(())
    };
    match file.kind {
        Kind::Lines => lines::read(&file.path, &mut each)?,
        Kind::Table => table::read(&file.path, &mut each)?,
    }
    if log.metrics.is_empty() {
        return Err(Error::Outside(OutsideFault::NoMetrics {
            path: file.path.clone(),
            wanted: wanted.metric.clone(),
            fields: reader.without_number().collect::<Vec<_>>().join(", "),
        }));
    }
    Ok(log)
}
