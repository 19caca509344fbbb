//! A scoreboard as tables of text, for every exporter.

use super::{Advised, Agreement, RowKind, Score, ScoreRow, Scoreboard};
use crate::reports::labels;
use crate::sample::Unit;

/// Headings and rows of text; the first column names the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreTable {
    /// A heading for each column.
    pub headings: Vec<String>,
    /// A cell for each column.
    pub rows: Vec<Vec<String>>,
}

const UNIT: Unit = Unit::Fraction;

impl Scoreboard {
    /// All tables under their headings: over all tasks, task by task, and where something was predicted the order of merges.
    #[must_use]
    pub fn tables(&self) -> Vec<(&'static str, ScoreTable)> {
        let advised = self.agreement.as_ref().map(Agreement::table);
        [
            ("Over all tasks", self.summary()),
            ("Task by task", self.by_task()),
        ]
        .into_iter()
        .chain(advised.map(|table| ("The order that advice predicts", table)))
        .collect()
    }

    /// The accuracy of each row over all tasks, its difference from the baseline, and its cost; models of single tasks
    /// are left to the other table.
    #[must_use]
    pub fn summary(&self) -> ScoreTable {
        let headings = [
            "method",
            "parameters",
            "mean",
            "normalized",
            "difference",
            "p (Holm)",
            "seconds",
            "memory",
            "data",
        ];
        let shown = self.rows.iter().filter(|row| row.kind != RowKind::Copy);
        ScoreTable {
            headings: headings.map(str::to_owned).into(),
            rows: shown.map(|row| self.summed(row)).collect(),
        }
    }

    fn summed(&self, row: &ScoreRow) -> Vec<String> {
        let difference = match row.mean.against {
            _ if row.name == self.baseline => "baseline".to_owned(),
            None => String::new(),
            Some(found) => format!(
                "{} ({} to {})",
                labels::difference(found.difference, UNIT),
                labels::difference(found.interval.low, UNIT),
                labels::difference(found.interval.high, UNIT)
            ),
        };
        let p = row.mean.against.map(|found| format!("{:.4}", found.p_holm));
        let cost = row.cost.as_ref();
        let seconds = cost.and_then(|cost| cost.processor_seconds);
        let memory = cost.and_then(|cost| cost.peak_bytes);
        vec![
            row.name.clone(),
            row.parameters.clone(),
            with_interval(&row.mean),
            row.normalized_mean
                .as_ref()
                .map_or_else(String::new, with_interval),
            difference,
            p.unwrap_or_default(),
            seconds.map_or_else(String::new, |seconds| format!("{seconds:.2}")),
            memory.map_or_else(String::new, labels::bytes),
            cost.map_or_else(String::new, |cost| cost.data.clone()),
        ]
    }

    /// The accuracy of each row on each task; a star where a merge differs from the baseline after correction.
    #[must_use]
    pub fn by_task(&self) -> ScoreTable {
        let headings = ["method".to_owned()].into_iter();
        let row = |row: &ScoreRow| {
            let scores = row.scores.iter().map(|score| {
                let star = if score.is_surprising() { "*" } else { "" };
                format!("{}{star}", with_interval(score))
            });
            let name = match row.kind {
                RowKind::Copy => format!("fine-tuned on {}", row.name),
                _ => row.name.clone(),
            };
            [name].into_iter().chain(scores).collect()
        };
        ScoreTable {
            headings: headings.chain(self.tasks.iter().cloned()).collect(),
            rows: self.rows.iter().map(row).collect(),
        }
    }
}

impl Agreement {
    /// The rank of each merge by advice and by measurement; a dash where there is no prediction.
    #[must_use]
    pub fn table(&self) -> ScoreTable {
        let headings = [
            "method",
            "predicted rank",
            "measured rank",
            "mean",
            "score of advice",
            "moved by",
        ];
        ScoreTable {
            headings: headings.map(str::to_owned).into(),
            rows: self.methods.iter().map(advised).collect(),
        }
    }
}

fn advised(of: &Advised) -> Vec<String> {
    let said = match &of.prediction {
        None => ["–", "–", "–", "no prediction"].map(str::to_owned),
        Some(ranks) => [
            ranks.predicted.to_string(),
            ranks.measured.to_string(),
            format!("{:.1}", ranks.score),
            ranks.rules.join(", "),
        ],
    };
    let [predicted, measured, score, rules] = said;
    let mean = labels::value(of.mean, UNIT);
    vec![of.name.clone(), predicted, measured, mean, score, rules]
}

/// A share in percent with its interval in brackets.
fn with_interval(score: &Score) -> String {
    let value = labels::value(score.value, UNIT);
    match score.interval {
        Some(interval) => format!("{value} ({})", labels::interval(interval, UNIT)),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::board;
    use super::super::{Advised, Agreement, Ranks};

    #[test]
    fn ranks_stand_side_by_side_and_what_is_not_predicted_is_said() {
        let mut board = board();
        assert_eq!(board.tables().len(), 2);
        let ranks = Ranks {
            score: 72.25,
            predicted: 1.0,
            measured: 2.5,
            rules: vec!["far".into(), "uneven".into()],
        };
        let advised = |name: &str, prediction| Advised {
            name: name.into(),
            mean: 0.5,
            prediction,
        };
        board.agreement = Some(Agreement {
            methods: vec![advised("a", Some(ranks)), advised("b", None)],
            spearman: None,
            kendall: None,
        });
        let tables = board.tables();
        let (heading, table) = &tables[2];
        assert_eq!(*heading, "The order that advice predicts");
        assert_eq!(
            table.rows[0],
            ["a", "1", "2.5", "50.00", "72.2", "far, uneven"]
        );
        assert_eq!(
            table.rows[1],
            ["b", "–", "–", "50.00", "–", "no prediction"]
        );
        assert_eq!(table.headings.len(), table.rows[0].len());
    }

    #[test]
    fn tables_say_each_number_in_percent() {
        let board = board();
        let summary = board.summary();
        assert_eq!(summary.rows.len(), 5);
        assert_eq!(
            summary.rows[3][..6],
            [
                "a<b",
                "",
                "60.00 (55.00–65.00)",
                "60.00 (55.00–65.00)",
                "+1.00 (−1.00 to +3.00)",
                "0.0200"
            ]
        );
        assert_eq!(summary.rows[2][4], "baseline");
        let by_task = board.by_task();
        assert_eq!(by_task.headings, ["method", "a_b", "c"]);
        // Corrected for all merges and tasks.
        assert_eq!(by_task.rows[3][1], "60.00 (55.00–65.00)*");
        assert_eq!(by_task.rows[4][1], "55.00 (50.00–60.00)");
    }
}
