//! Results in one form for every task. Tasks write them as JSON, exporters read them.
//!
//! The schema is described in `docs/formats.md`. Fractions stay fractions here; percent is a matter
//! of exporters.
//!
//! 1. [`measure`] makes [`Measurement`]s and [`Comparison`]s of samples; a [`Report`] holds them.
//! 2. [`mod@file`] writes and reads reports, and the [distances](merge::distance::report) of `vlmerge distance --json`.
//! 3. A [`Document`] joins what several files say, beside the figures that are [`published`].
//! 4. A [`scoreboard`] says what every merge reaches on every task.
//! 5. [`html`], [`markdown`], [`csv`] and [`latex`] each turn a document into text.

pub mod chart;
pub mod course;
pub mod csv;
pub mod curve;
pub mod document;
pub mod file;
pub mod html;
pub mod labels;
pub mod latex;
pub mod markdown;
pub mod model_index;
pub mod published;
pub mod scoreboard;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::datasets::left_out::Omission;
use crate::metrics::bootstrap::{Bootstrap, Interval, check_paired};
use crate::metrics::retrieval::{Standings, Ties, median_and_mean};
use crate::sample::{Sample, Unit};
use crate::tasks::TaskSpec;

pub use course::Course;
pub use document::{Document, Input};

/// The value of [`Report::schema`] that this program writes.
pub const SCHEMA: &str = "vlmerge.report/1";

/// Everything that one command measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// A result per checkpoint (or file of predictions), data set and split.
    pub results: Vec<TaskResult>,
    /// Results against the first of the same task, data set and split.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// Points of a search that have no result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedPoint>,
}

/// The numbers of one checkpoint, or one file of predictions, on one split of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The name of the judged model: a file name, or a point of a sweep.
    pub name: String,
    /// `retrieval`, `vqa`, `nlvr2` or `captions`.
    pub task: String,
    /// The data set, e.g. `coco`; `None` for files of predictions.
    #[serde(default)]
    pub dataset: Option<String>,
    /// Its split, e.g. `test`.
    #[serde(default)]
    pub split: Option<String>,
    /// The numbers.
    pub measurements: Vec<Measurement>,
    /// The numbers of images, texts, questions, ...
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// The omissions of the data set, though the annotations have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Omission>,
    /// The settings of measuring: treatment of ties, image size, dtype, draws of the bootstrap, ...
    #[serde(default)]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// The weights; `None` for files of predictions.
    #[serde(default)]
    pub checkpoint: Option<CheckpointRecord>,
    /// Its place in a sweep.
    #[serde(default)]
    pub point: Option<SweepPoint>,
    /// Wall time of the forward passes and the metric.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// The device, in words.
    #[serde(default)]
    pub device: Option<String>,
    /// Retrieved well or badly, with pictures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<Example>,
}

/// The measured weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The files the weights came from: one, or the inputs of a merge made in memory.
    pub files: Vec<merge::provenance::InputFile>,
    /// Family and form, e.g. `vl_merging/agnostic`.
    pub layout: String,
    /// The recipe that made the weights, where it is known.
    #[serde(default)]
    pub recipe: Option<String>,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Its name, e.g. `tr_r1`.
    pub name: String,
    /// In `unit`; null when there is no case.
    pub value: Option<f64>,
    /// The unit.
    pub unit: Unit,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The number of cases that it is a mean over.
    pub n: u64,
    /// Of 95%, by the bootstrap.
    #[serde(default)]
    pub interval: Option<Interval>,
}

/// A parameter of a merge and its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// `ratio`, `lambda` or `shrink`.
    pub parameter: String,
    /// Its value.
    pub value: f64,
    /// Whether it is the best of its sweep by the first measurement.
    #[serde(default)]
    pub is_best: bool,
}

/// A point of a search whose merge or score failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailedPoint {
    /// The name that its result would have.
    pub name: String,
    /// Its place in the search.
    #[serde(default)]
    pub point: Option<SweepPoint>,
    /// The error.
    pub reason: String,
    /// The last lines that the scoring program wrote to stderr.
    #[serde(default)]
    pub stderr: Vec<String>,
}

/// The differences of one result from another on the same units of data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The index of the result in [`Report::results`].
    pub result: usize,
    /// The index of the one it is compared with.
    pub against: usize,
    /// Number by number.
    pub differences: Vec<Difference>,
}

/// The difference of a number from that of the other result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The name of the number.
    pub name: String,
    /// In the number's unit; null where one of the two is not defined.
    pub difference: Option<f64>,
    /// Of 95%, on the same draws.
    #[serde(default)]
    pub interval: Option<Interval>,
    /// Two-sided, by the paired bootstrap.
    #[serde(default)]
    pub p: Option<f64>,
}

/// A query and the retrieved items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Whether it is shown as one of the best or one of the worst.
    pub is_best: bool,
    /// The query.
    pub query: Item,
    /// The rank of the best right item, from 1.
    pub rank: u64,
    /// The items with the highest scores, best first.
    pub retrieved: Vec<Retrieved>,
    /// A right item, shown when none was retrieved.
    #[serde(default)]
    pub right: Option<Item>,
    /// The texts of people, where a text was written: then `rank` is that of its score among all, and `retrieved` the
    /// text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
}

/// A retrieved item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// The item.
    pub item: Item,
    /// Its score.
    pub score: f64,
    /// Whether it belongs to the query.
    pub is_right: bool,
}

/// A picture or a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A caption.
    Text(String),
    /// A picture.
    Image {
        /// Its id in the data set.
        id: String,
        /// A small version as a `data:` address, so that a report needs no other file.
        thumbnail: String,
    },
}

impl TaskResult {
    /// The number by which results are compared: the headline number of the task, or else the first one.
    #[must_use]
    pub fn worth(&self) -> Option<f64> {
        let headline = TaskSpec::of(&self.task).map(|task| task.headline);
        let mut measurements = self.measurements.iter();
        let found = measurements.find(|m| Some(m.name.as_str()) == headline);
        found.or(self.measurements.first())?.value
    }

    /// [`worth`](Self::worth), negated where less is better.
    fn merit(&self) -> Option<f64> {
        let is_less_better = self
            .measurements
            .first()
            .is_some_and(|m| !m.higher_is_better);
        let worth = self.worth()?;
        Some(if is_less_better { -worth } else { worth })
    }
}

impl Report {
    /// Marks the point of a sweep with the best headline number; of several equal ones the first.
    pub fn mark_best(&mut self) {
        let of_sweep = self.results.iter().enumerate();
        let of_sweep = of_sweep.filter(|(_, result)| result.point.is_some());
        let best = of_sweep.filter_map(|(index, result)| Some((index, result.merit()?)));
        let best = best.reduce(|best, next| if next.1 > best.1 { next } else { best });
        for (index, result) in self.results.iter_mut().enumerate() {
            if let Some(point) = &mut result.point {
                point.is_best = best.is_some_and(|(best, _)| best == index);
            }
        }
    }

    /// A report of results, in the order in which they are to be read.
    #[must_use]
    pub fn new(results: Vec<TaskResult>, comparisons: Vec<Comparison>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            results,
            comparisons,
            failed: Vec::new(),
        }
    }
}

/// The numbers of each sample with their intervals, and each sample but the first against the
/// first, on the same draws.
///
/// # Errors
/// [`Error::NotPaired`](crate::Error::NotPaired) when two samples are not of the same units.
pub fn measure(
    samples: &[Sample],
    bootstrap: &Bootstrap,
) -> Result<(Vec<Vec<Measurement>>, Vec<Comparison>)> {
    let draws: Vec<_> = samples.iter().map(|s| bootstrap.resample(s)).collect();
    let mut measured = Vec::new();
    for (sample, own) in samples.iter().zip(&draws) {
        let quantities = sample.quantities.iter().enumerate();
        let measurements = quantities.map(|(index, quantity)| Measurement {
            name: quantity.name.clone(),
            value: sample.value(quantity),
            unit: quantity.unit,
            higher_is_better: true,
            n: sample.n_cases(quantity),
            interval: own.interval(index),
        });
        measured.push(measurements.collect());
    }
    let mut comparisons = Vec::new();
    for (result, sample) in samples.iter().enumerate().skip(1) {
        check_paired(&samples[0], sample)?;
        let mut differences = Vec::new();
        for (index, quantity) in sample.quantities.iter().enumerate() {
            let paired = draws[result].paired(&draws[0], index)?;
            let values = sample.value(quantity).zip(samples[0].value(quantity));
            differences.push(Difference {
                name: quantity.name.clone(),
                difference: values.map(|(own, other)| own - other),
                interval: paired.map(|paired| paired.interval),
                p: paired.map(|paired| paired.p),
            });
        }
        comparisons.push(Comparison {
            result,
            against: 0,
            differences,
        });
    }
    Ok((measured, comparisons))
}

/// Median and mean of the ranks of both directions. They have no intervals: a mean rank is ruled by
/// a few queries, so that its draws say little.
#[must_use]
pub fn ranks(standings: &Standings, ties: Ties) -> Vec<Measurement> {
    let directions = [("tr", &standings.of_images), ("ir", &standings.of_texts)];
    let of_direction = |(direction, standings): (&str, &Vec<_>)| {
        let (median, mean) = median_and_mean(standings, ties).unzip();
        let n = standings.len() as u64;
        [("median", median), ("mean", mean)].map(|(what, value)| Measurement {
            name: format!("{direction}_{what}_rank"),
            value,
            unit: Unit::Rank,
            higher_is_better: false,
            n,
            interval: None,
        })
    };
    directions.into_iter().flat_map(of_direction).collect()
}
