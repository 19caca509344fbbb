//! Samples of several files, and the report that comes of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use evaluate::Sample;
use evaluate::metrics::bootstrap::{Bootstrap, check_paired};
use evaluate::reports::{self, Measurement, Report, TaskResult};
use serde_json::Value;

/// Predictions that have been judged, file by file.
pub struct Judged {
    /// The task, as its subcommand is called.
    pub task: &'static str,
    /// The units that the bootstrap draws, in the plural.
    pub units: &'static str,
    /// The judged files and task, in a line.
    pub headline: String,
    /// The numbers of images, texts, questions or examples.
    pub counts: BTreeMap<String, u64>,
    /// The settings of judging.
    pub settings: BTreeMap<String, Value>,
    files: Vec<File>,
}

struct File {
    name: String,
    sample: Sample,
    /// Numbers that are not drawn.
    others: Vec<Measurement>,
}

impl Judged {
    /// Nothing judged yet.
    pub fn new(task: &'static str, units: &'static str) -> Self {
        Self {
            task,
            units,
            headline: String::new(),
            counts: BTreeMap::new(),
            settings: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// Says how many of something there are.
    pub fn count(&mut self, what: &str, n: usize) {
        self.counts.insert(what.to_owned(), n as u64);
    }

    /// Says how it was judged.
    pub fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Adds the results of a file; `others` are numbers without an interval.
    pub fn add(&mut self, path: &Path, sample: Sample, others: Vec<Measurement>) {
        self.files.push(File {
            name: path.display().to_string(),
            sample,
            others,
        });
    }

    /// Draws the intervals of every file and the differences to the first.
    pub fn report(self, bootstrap: &Bootstrap) -> Result<Report> {
        if let [first, rest @ ..] = &self.files[..] {
            for file in rest {
                check_paired(&first.sample, &file.sample).with_context(|| file.name.clone())?;
            }
        }
        let (mut samples, mut named) = (Vec::new(), Vec::new());
        for file in self.files {
            samples.push(file.sample);
            named.push((file.name, file.others));
        }
        let (measured, comparisons) = reports::measure(&samples, bootstrap)?;
        let results = named.into_iter().zip(measured);
        let results = results.map(|((name, others), mut measurements)| {
            measurements.extend(others);
            TaskResult {
                name,
                task: self.task.to_owned(),
                measurements,
                counts: self.counts.clone(),
                settings: self.settings.clone(),
                ..TaskResult::default()
            }
        });
        Ok(Report::new(results.collect(), comparisons))
    }
}
