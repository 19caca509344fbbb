//! Every merge on every task: the table of papers on merging, with intervals and tests.
//!
//! A [`Scoreboard`] is written as JSON as it is; [`Scoreboard::tables`] are its tables, and [`svg`] draws its means. Its
//! [`Agreement`] says how well an order that was predicted before agrees with the means.

mod agreement;
mod picture;
mod tables;

use serde::{Deserialize, Serialize};

use crate::metrics::bootstrap::Interval;
use crate::metrics::holm::holm;

pub use agreement::{Advised, Agreement, Candidate, Correlation, LEAST_METHODS, Ranks};
pub use picture::{figure, svg};
pub use tables::ScoreTable;

/// A test of a merge is called surprising below this, after correction.
pub const SURPRISING: f64 = 0.05;

/// Merges of models of several tasks, measured on all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scoreboard {
    /// The tasks, in the order of the scores.
    pub tasks: Vec<String>,
    /// The name of the row that merges are tested against.
    pub baseline: String,
    /// First the pretrained model, then the models that were merged, then the merges.
    pub rows: Vec<ScoreRow>,
    /// The agreement of predictions of the merges' order with it; none without predictions.
    pub agreement: Option<Agreement>,
    /// Notes on the table as a whole.
    pub notes: Vec<String>,
}

/// A model, or a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// Its name.
    pub name: String,
    /// The kind of the row.
    pub kind: RowKind,
    /// Parameters of its merge, for people.
    pub parameters: String,
    /// Accuracy on each task.
    pub scores: Vec<Score>,
    /// The mean of these.
    pub mean: Score,
    /// The mean over tasks of its accuracy over that of the task's own model; none where one of these is never right.
    pub normalized_mean: Option<Score>,
    /// The cost of the merge.
    pub cost: Option<MergeCost>,
}

/// The kind of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// The model that all others started from.
    Pretrained,
    /// The own model of each task.
    FineTuned,
    /// The model of one task, on all tasks.
    Copy,
    /// All of them in one.
    Merge,
}

/// A share with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The share.
    pub value: f64,
    /// Of 95%, by the bootstrap over pictures.
    pub interval: Option<Interval>,
    /// Its difference from the baseline, of merges but the baseline itself.
    pub against: Option<Against>,
}

/// A difference to the baseline on the same draws.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// The difference.
    pub difference: f64,
    /// Of 95%.
    pub interval: Interval,
    /// The probability of such a difference if there were none; two-sided, by the paired bootstrap.
    pub p: f64,
    /// The same, corrected by Holm's procedure: of means for all merges, of single tasks for all merges and tasks.
    pub p_holm: f64,
}

/// The cost of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeCost {
    /// Seconds of processors, of merging alone: statistics of data count, training and measuring do not.
    pub processor_seconds: Option<f64>,
    /// The most memory that any of its processes holds.
    pub peak_bytes: Option<u64>,
    /// The data that it takes beside the models.
    pub data: String,
}

impl Score {
    /// Whether it differs from that of the baseline, after correction.
    #[must_use]
    pub fn is_surprising(&self) -> bool {
        self.against.is_some_and(|found| found.p_holm < SURPRISING)
    }
}

impl Scoreboard {
    /// Corrects the tests for how many they are: those of means, of normalized means, and of single tasks, each kind by
    /// itself.
    pub fn correct(&mut self) {
        corrected(self.rows.iter_mut().map(|row| &mut row.mean));
        corrected(
            self.rows
                .iter_mut()
                .filter_map(|row| row.normalized_mean.as_mut()),
        );
        corrected(self.rows.iter_mut().flat_map(|row| &mut row.scores));
    }

    /// The number of tested merges.
    #[must_use]
    pub fn n_tested(&self) -> usize {
        let tested = self.rows.iter().filter(|row| row.mean.against.is_some());
        tested.count()
    }

    /// The mean of the first row of a kind.
    #[must_use]
    pub fn mean_of(&self, kind: RowKind) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.kind == kind)?;
        Some(row.mean.value)
    }
}

fn corrected<'a>(scores: impl Iterator<Item = &'a mut Score>) {
    let mut tests: Vec<&mut Against> = scores.filter_map(|score| score.against.as_mut()).collect();
    let p: Vec<f64> = tests.iter().map(|test| test.p).collect();
    for (test, p) in tests.iter_mut().zip(holm(&p)) {
        test.p_holm = p;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(value: f64, p: Option<f64>) -> Score {
        Score {
            value,
            interval: Some(Interval {
                low: value - 0.05,
                high: value + 0.05,
            }),
            against: p.map(|p| Against {
                difference: 0.01,
                interval: Interval {
                    low: -0.01,
                    high: 0.03,
                },
                p,
                p_holm: p,
            }),
        }
    }

    fn row(name: &str, kind: RowKind, value: f64, p: Option<f64>) -> ScoreRow {
        ScoreRow {
            name: name.into(),
            kind,
            parameters: String::new(),
            scores: vec![score(value, p), score(value, p)],
            mean: score(value, p),
            normalized_mean: Some(score(value, p)),
            cost: None,
        }
    }

    pub(super) fn board() -> Scoreboard {
        let mut board = Scoreboard {
            tasks: vec!["a_b".into(), "c".into()],
            baseline: "mean".into(),
            rows: vec![
                row("pretrained", RowKind::Pretrained, 0.25, None),
                row("fine-tuned", RowKind::FineTuned, 0.9, None),
                row("mean", RowKind::Merge, 0.5, None),
                row("a<b", RowKind::Merge, 0.6, Some(0.01)),
                row("other", RowKind::Merge, 0.55, Some(0.04)),
            ],
            agreement: None,
            notes: vec!["Said of all.".into()],
        };
        board.correct();
        board
    }

    #[test]
    fn tests_of_means_count_merges_and_those_of_tasks_count_both() {
        let board = board();
        let holm = |score: &Score| score.against.expect("tested").p_holm;
        // Two merges: twice 0.01, and 0.04.
        assert_eq!(holm(&board.rows[3].mean), 0.02);
        assert_eq!(holm(&board.rows[4].mean), 0.04);
        // Two merges on two tasks: 4 · 0.01, and twice 0.04.
        assert_eq!(holm(&board.rows[3].scores[1]), 0.04);
        assert_eq!(holm(&board.rows[4].scores[0]), 0.08);
        assert_eq!(board.n_tested(), 2);
        assert!(board.rows[3].mean.is_surprising() && !board.rows[4].scores[0].is_surprising());
    }
}
