//! Samples of several files, and the numbers that come of them.

use std::path::Path;

use anyhow::{Context, Result};
use evaluate::metrics::bootstrap::{Bootstrap, Interval, check_paired};
use evaluate::{Sample, Unit};
use serde::Serialize;

/// Predictions that have been judged, file by file.
pub struct Judged {
    /// The task, as its subcommand is called.
    pub task: &'static str,
    /// What the bootstrap draws, in the plural.
    pub units: &'static str,
    /// What was judged, in a line.
    pub headline: String,
    /// What else is to be said below the table.
    pub remarks: Vec<String>,
    /// How it was judged, for JSON.
    pub settings: serde_json::Value,
    samples: Vec<(String, Sample)>,
}

/// Everything that is reported.
pub struct Report {
    /// The numbers of each file.
    pub files: Vec<FileReport>,
    /// Each file but the first against the first.
    pub comparisons: Vec<Comparison>,
}

#[derive(Serialize)]
pub struct FileReport {
    pub file: String,
    pub measurements: Vec<Measurement>,
}

/// A number of one file.
#[derive(Serialize)]
pub struct Measurement {
    pub name: String,
    /// In `unit`; null when there is no case.
    pub value: Option<f64>,
    pub unit: Unit,
    /// How many cases it is a mean over.
    pub n: u64,
    /// Of 95%.
    pub interval: Option<Interval>,
}

#[derive(Serialize)]
pub struct Comparison {
    pub file: String,
    pub against: String,
    pub differences: Vec<Difference>,
}

/// How far a number lies above that of the other file.
#[derive(Serialize)]
pub struct Difference {
    pub name: String,
    pub difference: Option<f64>,
    pub interval: Option<Interval>,
    pub p: Option<f64>,
}

impl Judged {
    /// Nothing judged yet.
    pub fn new(task: &'static str, units: &'static str) -> Self {
        Self {
            task,
            units,
            headline: String::new(),
            remarks: Vec::new(),
            settings: serde_json::Value::Null,
            samples: Vec::new(),
        }
    }

    /// Adds the results of a file.
    pub fn add(&mut self, path: &Path, sample: Sample) {
        self.samples.push((path.display().to_string(), sample));
    }

    /// Draws the intervals of every file and the differences to the first.
    pub fn measure(&self, bootstrap: &Bootstrap) -> Result<Report> {
        let draws: Vec<_> = self
            .samples
            .iter()
            .map(|(_, sample)| bootstrap.resample(sample))
            .collect();
        let mut report = Report {
            files: Vec::new(),
            comparisons: Vec::new(),
        };
        for ((file, sample), own) in self.samples.iter().zip(&draws) {
            let quantities = sample.quantities.iter().enumerate();
            let measurements = quantities.map(|(index, quantity)| Measurement {
                name: quantity.name.clone(),
                value: sample.value(quantity),
                unit: quantity.unit,
                n: sample.n_cases(quantity),
                interval: own.interval(index),
            });
            report.files.push(FileReport {
                file: file.clone(),
                measurements: measurements.collect(),
            });
        }
        let Some((against, reference)) = self.samples.first() else {
            return Ok(report);
        };
        for ((file, sample), own) in self.samples.iter().zip(&draws).skip(1) {
            check_paired(reference, sample).with_context(|| file.clone())?;
            let mut differences = Vec::new();
            for (index, quantity) in sample.quantities.iter().enumerate() {
                let paired = own.paired(&draws[0], index)?;
                let values = sample.value(quantity).zip(reference.value(quantity));
                differences.push(Difference {
                    name: quantity.name.clone(),
                    difference: values.map(|(own, other)| own - other),
                    interval: paired.map(|paired| paired.interval),
                    p: paired.map(|paired| paired.p),
                });
            }
            report.comparisons.push(Comparison {
                file: file.clone(),
                against: against.clone(),
                differences,
            });
        }
        Ok(report)
    }
}
