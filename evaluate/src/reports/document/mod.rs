//! Joins the results of several files: methods down, numbers across.
//!
//! Results stand in one table only if they can be compared: same task, data set and split, same
//! counts, and for files of predictions the same file of labels. Of a sweep the tables show the best
//! point; its other points are a [`Sweep`].

mod grid;
mod group;
mod sweeps;

pub use grid::{Cell, Column, Grid, Number, Row, RowKind};
pub use group::{Group, plain};
pub use sweeps::{Curve, CurvePoint, Sweep};

use std::collections::BTreeMap;

use merge::distance::report::DistanceReport;
use merge::provenance::{FileHash, InputFile};

use super::file::Source;
use super::published::Published;
use super::scoreboard::Scoreboard;
use super::{Course, Difference, Report, TaskResult, labels};

/// A file and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The name of the file, for people.
    pub label: String,
    /// Its contents.
    pub source: Source,
}

/// Everything that an exporter writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The heading.
    pub title: String,
    /// The principal numbers of all groups; `None` if there are fewer than two.
    pub overview: Option<Grid>,
    /// Every merge on every task, where a study measured that.
    pub scoreboard: Option<Scoreboard>,
    /// Results that can be compared with each other.
    pub groups: Vec<Group>,
    /// Distances of weights: name of the file and content.
    pub distances: Vec<(String, DistanceReport)>,
    /// The courses of training runs.
    pub courses: Vec<Course>,
    /// Numbers of several models along one axis, under a heading.
    pub charts: Vec<(String, Vec<Chart>)>,
    /// All results, in the order of the files.
    pub results: Vec<Placed>,
    /// Remarks on the tables as a whole.
    pub remarks: Vec<String>,
}

/// A number of several models along one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The parameter of the axis.
    pub parameter: String,
    /// The models by their names; their numbers have one title and one unit.
    pub lines: Vec<(String, Curve)>,
}

/// A result with its file and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The file that it comes from.
    pub label: String,
    /// The name of its row: its own, with the file where two would be called the same.
    pub name: String,
    /// The result.
    pub result: TaskResult,
    /// Whether others of its file were compared with it.
    pub is_reference: bool,
    /// Its tested difference from another: the name of that row and the numbers.
    pub against: Option<(String, Vec<Difference>)>,
}

impl Document {
    /// Joins what the files say, beside published figures of the same data.
    #[must_use]
    pub fn new(title: &str, inputs: &[Input], published: &Published) -> Self {
        let results = place(inputs);
        let groups = group::groups(&results, published);
        let distances = inputs.iter().filter_map(|input| match &input.source {
            Source::Report(_) | Source::Course(_) => None,
            Source::Distances(distances) => Some((input.label.clone(), distances.clone())),
        });
        let courses = inputs.iter().filter_map(|input| match &input.source {
            Source::Course(course) => Some(course.clone()),
            Source::Report(_) | Source::Distances(_) => None,
        });
        Self {
            courses: courses.collect(),
            charts: Vec::new(),
            scoreboard: None,
            title: title.to_owned(),
            overview: (groups.len() > 1).then(|| grid::overview(&groups)),
            remarks: [remarks(&results), remarks_on_failures(inputs)].concat(),
            distances: distances.collect(),
            groups,
            results,
        }
    }

    /// Whether any number is marked as differing from the first.
    #[must_use]
    pub fn has_tests(&self) -> bool {
        self.results.iter().any(|placed| placed.against.is_some())
    }

    /// Whether any figure of others is shown.
    #[must_use]
    pub fn has_published(&self) -> bool {
        let rows = self.groups.iter().flat_map(|group| &group.grid.rows);
        rows.into_iter()
            .any(|row| !matches!(row.kind, RowKind::Measured { .. }))
    }
}

/// The results of all files with names that tell them apart.
fn place(inputs: &[Input]) -> Vec<Placed> {
    let mut placed = Vec::new();
    for input in inputs {
        if let Source::Report(report) = &input.source {
            let first = placed.len();
            for result in &report.results {
                placed.push(Placed {
                    label: labels::one_line(&input.label),
                    name: labels::one_line(&result.name),
                    result: result.clone(),
                    is_reference: false,
                    against: None,
                });
            }
            compare(report, &mut placed[first..]);
        }
    }
    tell_apart(&mut placed);
    placed
}

/// Hands each result its differences. The name of the other is its index until all names are known.
fn compare(report: &Report, placed: &mut [Placed]) {
    for comparison in &report.comparisons {
        if let Some(other) = placed.get_mut(comparison.against) {
            other.is_reference = true;
            let name = other.name.clone();
            if let Some(own) = placed.get_mut(comparison.result) {
                own.against = Some((name, comparison.differences.clone()));
            }
        }
    }
}

/// Adds the file to names that results of two files share, and a number where that is not enough.
fn tell_apart(placed: &mut [Placed]) {
    let shared = shared_names(placed);
    let of_files = |name: &String| {
        let mut labels = placed.iter().filter(|p| p.name == *name).map(|p| &p.label);
        let first = labels.next();
        labels.any(|label| Some(label) != first)
    };
    let shared: Vec<String> = shared.into_iter().filter(of_files).collect();
    for result in placed.iter_mut() {
        let label = &result.label;
        let other = result.against.as_mut().map(|(name, _)| name);
        for name in other.into_iter().chain([&mut result.name]) {
            if shared.contains(name) {
                *name = format!("{name} ({label})");
            }
        }
    }
    let shared = shared_names(placed);
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for result in placed.iter_mut().filter(|p| shared.contains(&p.name)) {
        let number = numbers.entry(result.name.clone()).or_default();
        *number += 1;
        if *number > 1 {
            result.name = format!("{} #{number}", result.name);
        }
    }
}

/// Names that stand for several results in one group.
fn shared_names(placed: &[Placed]) -> Vec<String> {
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for result in placed {
        *seen
            .entry((result.name.as_str(), group::key(&result.result)))
            .or_default() += 1;
    }
    let shared = seen.into_iter().filter(|(_, n)| *n > 1);
    shared.map(|((name, _), _)| name.to_owned()).collect()
}

/// The points of a search without a result, file by file.
fn remarks_on_failures(inputs: &[Input]) -> Vec<String> {
    let reports = inputs.iter().filter_map(|input| match &input.source {
        Source::Report(report) if !report.failed.is_empty() => Some((&input.label, report)),
        _ => None,
    });
    let remark = |(label, report): (&String, &Report)| {
        let names = report.failed.iter().map(|failed| failed.name.as_str());
        let names = names.collect::<Vec<_>>().join("; ");
        let label = labels::one_line(label);
        format!(
            "{label}: these trials failed and stand in no table: {}.",
            labels::one_line(&names)
        )
    };
    reports.map(remark).collect()
}

/// Names that stand for different weights in different columns.
fn remarks(results: &[Placed]) -> Vec<String> {
    let mut weights: BTreeMap<&str, Vec<FileHash>> = BTreeMap::new();
    for placed in results {
        let files = placed.result.checkpoint.iter().flat_map(|c| &c.files);
        let mut hashes: Vec<FileHash> = files.filter_map(InputFile::hash).collect();
        if hashes.len() == 1 {
            let known = weights.entry(&placed.name).or_default();
            if !known.contains(&hashes[0]) {
                known.append(&mut hashes);
            }
        }
    }
    (weights.into_iter())
        .filter(|(_, hashes)| hashes.len() > 1)
        .map(|(name, _)| {
            format!("“{name}” stands for different weights in different columns; see the details.")
        })
        .collect()
}
