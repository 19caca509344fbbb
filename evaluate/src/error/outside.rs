//! Results of other programs cannot be used.

use std::path::PathBuf;

/// Results of another program cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutsideFault {
    /// JSON lacks a key.
    #[error("{origin}: has no `{key}`; {}", of_numbers(known))]
    NoKey {
        /// Where the JSON comes from.
        origin: String,
        /// The path of keys.
        key: String,
        /// The paths of numbers that are most like it.
        known: String,
    },
    /// A value is no finite number.
    #[error("{origin}: has {found}{key}, which is no finite number")]
    NoNumber {
        /// Where the JSON comes from.
        origin: String,
        /// The path of keys, as a clause.
        key: String,
        /// The value.
        found: String,
    },
    /// JSON has no number, or several, and no key says which.
    #[error("{origin}: no key says which number is meant; {}", of_numbers(known))]
    SeveralNumbers {
        /// Where the JSON comes from.
        origin: String,
        /// The paths of numbers.
        known: String,
    },
    /// No file holds the answers of a run.
    #[error("{}: holds no answers by example: {fault}", path.display())]
    NoAnswers {
        /// The file or folder.
        path: PathBuf,
        /// The reason, as a clause.
        fault: String,
    },
    /// Answers are in a spreadsheet.
    #[error("{}: is a spreadsheet, which is not read", path.display())]
    Spreadsheet {
        /// The file.
        path: PathBuf,
    },
    /// An example cannot be read.
    #[error("{}: line {line} {fault}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// The line or row, from 1.
        line: usize,
        /// The fault, as a clause.
        fault: String,
    },
    /// An example has two numbers of one metric.
    #[error("{}: line {line} says `{metric}` of example {id} once more", path.display())]
    TwiceAnswered {
        /// The file.
        path: PathBuf,
        /// The line or row, from 1.
        line: usize,
        /// The example.
        id: String,
        /// The metric.
        metric: String,
    },
    /// Examples have no numbers.
    #[error("{}: {}", path.display(), without_metrics(wanted.as_deref(), fields))]
    NoMetrics {
        /// The file.
        path: PathBuf,
        /// The metric that was asked for.
        wanted: Option<String>,
        /// Fields without numbers.
        fields: String,
    },
    /// Two runs answer different tasks.
    #[error("the runs have no task in common: one has {one}, the other {other}")]
    NoCommonTask {
        /// The tasks of the first run.
        one: String,
        /// The tasks of the second run.
        other: String,
    },
    /// A task is in one run alone.
    #[error("`{task}` is in {} alone", path.display())]
    TaskInOne {
        /// The task.
        task: String,
        /// The run.
        path: PathBuf,
    },
    /// Two runs answer different examples.
    #[error(
        "{task}: {n_one} examples are in the first run alone and {n_other} in the second; \
             one of them is {first}"
    )]
    OtherExamples {
        /// The task.
        task: String,
        /// The number of examples of the first run alone.
        n_one: usize,
        /// The number of examples of the second run alone.
        n_other: usize,
        /// One of these.
        first: String,
    },
    /// Examples of one name have different contents.
    #[error(
        "{task}: {n} of {n_all} examples have other contents in the two runs; one of them is {first}"
    )]
    OtherContents {
        /// The task.
        task: String,
        /// The number of such examples.
        n: usize,
        /// The number of examples in both runs.
        n_all: usize,
        /// One of them.
        first: String,
    },
    /// Two runs used different versions of a task.
    #[error("{task}: the {what} is {one} in the first run and {other} in the second")]
    OtherVersions {
        /// The task.
        task: String,
        /// The fact in which they differ.
        what: &'static str,
        /// In the first run.
        one: String,
        /// In the second run.
        other: String,
    },
    /// Nothing is left to compare.
    #[error("{task}: the two runs have no example and metric in common")]
    NothingInCommon {
        /// The task.
        task: String,
    },
    /// No number of examples answers a question of power.
    #[error("{fault}")]
    NoPower {
        /// The reason.
        fault: String,
    },
}

fn without_metrics(wanted: Option<&str>, fields: &str) -> String {
    match (wanted, fields) {
        (Some(wanted), _) => format!("no example has `{wanted}`"),
        (None, "") => "no example has a number".to_owned(),
        (None, fields) => {
            format!("no example has a number that can be averaged; its fields are {fields}")
        }
    }
}

fn of_numbers(known: &str) -> String {
    match known {
        "" => "it holds no number".to_owned(),
        known => format!("its numbers are {known}"),
    }
}
