//! From what the steps measured to the table.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use evaluate::datasets::classes::ClassSet;
use evaluate::metrics::bootstrap::{Bootstrap, Resampled};
use evaluate::reports::published::Published;
use evaluate::reports::scoreboard::{
    self, Against, Agreement, Candidate, MergeCost, RowKind, Score, ScoreRow, ScoreTable,
    Scoreboard,
};
use evaluate::reports::{Document, markdown};
use evaluate::{Ratio, Sample};
use serde_json::{Map, json};

use super::advice;
use super::graph::{MultiTask, Origin, measured_as};
use super::notes::notes;
use super::recipe::{FINE_TUNED, Merge};
use crate::study::cost::Cost;
use crate::study::results::{Findings, keep, read};
use crate::study::store::Store;
use crate::table::{Align, Table};

/// The accuracy of a row on a task, and on every draw of the task's pictures.
struct Measured {
    value: f64,
    draws: Resampled,
}

/// Reads what the steps left, and joins it.
pub fn join(study: &MultiTask, store: &Store) -> Result<Findings> {
    let chosen = chosen(study, store)?;
    let mut measured: Vec<Vec<Measured>> = chosen.iter().map(|_| Vec::new()).collect();
    let mut tests = Vec::new();
    for index in 0..study.judged.len() {
        let names: Vec<String> = (0..study.rows.len()).map(measured_as).collect();
        let place = &study.judged[index].test;
        let mut report = read(store, place, names.iter().map(String::as_str))?;
        for (of_row, &row) in measured.iter_mut().zip(&chosen) {
            of_row.push(accuracy(study, store, index, row)?);
        }
        keep(&mut report, |row| chosen.contains(&row));
        for (result, &row) in report.results.iter_mut().zip(&chosen) {
            result.name = name(study, row).to_owned();
        }
        // Differences are to the first row, which is not the baseline.
        report.comparisons.clear();
        tests.push(report);
    }
    let board = scoreboard(study, store, &chosen, &measured)?;
    let mut document = Document::new(&study.recipe.title, &[], &Published::ours()?);
    let files = vec![
        ("table.json", serde_json::to_string_pretty(&board)?),
        ("table.svg", scoreboard::svg(&board)),
    ];
    let table = for_terminal(&board);
    let statements = board.notes.clone();
    let mut more = Map::new();
    more.insert("table".into(), json!(board));
    document.scoreboard = Some(board);
    let markdown = markdown::markdown(&document)?;
    Ok(Findings {
        document,
        tests,
        statements,
        more,
        files: files.into_iter().chain([("table.md", markdown)]).collect(),
        table: Some(table),
    })
}

/// The rows of the table: of a method with a list the point with the best mean accuracy on validation data, of equal ones
/// the first.
fn chosen(study: &MultiTask, store: &Store) -> Result<Vec<usize>> {
    let names: Vec<String> = study.swept.iter().map(|&row| measured_as(row)).collect();
    let mut means = vec![0.0; study.swept.len()];
    for judged in &study.judged {
        if let Some(place) = &judged.validation {
            let report = read(store, place, names.iter().map(String::as_str))?;
            for (mean, result) in means.iter_mut().zip(&report.results) {
                let worth = result
                    .worth()
                    .context("a validation split without pictures")?;
                *mean += worth / study.judged.len() as f64;
            }
        }
    }
    let mean_of = |row: usize| {
        let place = study.swept.iter().position(|&swept| swept == row);
        place.map_or(0.0, |place| means[place])
    };
    let mut best: Vec<Option<usize>> = vec![None; study.recipe.methods.len()];
    for &row in &study.swept {
        if let Origin::Merge(merge, _) = &study.rows[row].origin {
            let best = &mut best[merge.method];
            if best.is_none_or(|best| mean_of(row) > mean_of(best)) {
                *best = Some(row);
            }
        }
    }
    let is_kept = |row: &usize| match &study.rows[*row].origin {
        Origin::Merge(merge, _) => best[merge.method].is_none_or(|best| best == *row),
        _ => true,
    };
    Ok((0..study.rows.len()).filter(is_kept).collect())
}

/// The name of a row in the table.
fn name(study: &MultiTask, row: usize) -> &str {
    match &study.rows[row].origin {
        Origin::Merge(merge, _) => study.recipe.methods[merge.method].name(),
        _ => &study.rows[row].name,
    }
}

/// The accuracy of a row on a task, from its predictions.
fn accuracy(study: &MultiTask, store: &Store, index: usize, row: usize) -> Result<Measured> {
    let (recipe, task) = (&study.recipe, &study.recipe.tasks[index]);
    let set = ClassSet::open(&recipe.classes, &task.dataset, &task.test)?;
    let set = set.evenly(recipe.limit.unwrap_or(usize::MAX));
    let folder = store.path("", &study.judged[index].predictions);
    let path = folder.join(format!("{}.{}.csv", measured_as(row), task.test));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let said: Vec<&str> = text.lines().skip(1).collect();
    if said.len() != set.len() {
        let (n, pictures) = (said.len(), set.len());
        bail!(
            "{}: {n} predictions for {pictures} pictures; remove the study's folder of this step",
            path.display()
        );
    }
    let mut cases = Vec::new();
    for (picture, line) in said.into_iter().enumerate() {
        let class = line
            .rsplit_once(',')
            .and_then(|(_, class)| class.parse::<usize>().ok());
        let class =
            class.with_context(|| format!("{}: {line:?} names no class", path.display()))?;
        cases.push((picture, f64::from(u8::from(class == set.class(picture)?))));
    }
    let mut sample = Sample::new(cases.len());
    let value = cases.iter().map(|(_, hit)| hit).sum::<f64>() / cases.len().max(1) as f64;
    sample.report("top1", Ratio::of_cases(cases));
    // The same draws as the report of the step has.
    let bootstrap = Bootstrap::new(recipe.resamples, index as u64)?;
    Ok(Measured {
        value,
        draws: bootstrap.resample(&sample),
    })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The mean of the first half of the values, each over one of the second half.
fn normalized_mean(values: &[f64]) -> Option<f64> {
    let (own, fine_tuned) = values.split_at(values.len() / 2);
    let shares = own.iter().zip(fine_tuned);
    let shares = shares.map(|(own, fine_tuned)| (*fine_tuned > 0.0).then(|| own / fine_tuned));
    mean(&shares.collect::<Option<Vec<f64>>>()?)
}

/// A number of a row and of the baseline.
struct Number {
    value: f64,
    draws: Resampled,
}

impl Number {
    /// With its interval, and tested against that of the baseline if there is one to test against.
    fn score(&self, baseline: Option<&Self>) -> Result<Score> {
        let against = match baseline {
            None => None,
            Some(baseline) => self
                .draws
                .paired(&baseline.draws, 0)?
                .map(|paired| Against {
                    difference: self.value - baseline.value,
                    interval: paired.interval,
                    p: paired.p,
                    p_holm: paired.p,
                }),
        };
        Ok(Score {
            value: self.value,
            interval: self.draws.interval(0),
            against,
        })
    }
}

/// The three kinds of numbers of a row.
struct Numbers {
    tasks: Vec<Number>,
    mean: Number,
    normalized: Option<Number>,
}

impl Numbers {
    fn of(own: &[Measured], fine_tuned: &[Measured]) -> Result<Self> {
        let parts: Vec<_> = own.iter().map(|of| (&of.draws, 0)).collect();
        let both: Vec<_> = own
            .iter()
            .chain(fine_tuned)
            .map(|of| (&of.draws, 0))
            .collect();
        let values = |of: &[Measured]| of.iter().map(|of| of.value).collect::<Vec<_>>();
        let normalized = normalized_mean(&[values(own), values(fine_tuned)].concat());
        Ok(Self {
            tasks: own
                .iter()
                .map(|of| Number {
                    value: of.value,
                    draws: of.draws.clone(),
                })
                .collect(),
            mean: Number {
                value: mean(&values(own)).context("a study without tasks")?,
                draws: Resampled::combined(&parts, mean)?,
            },
            normalized: match normalized {
                None => None,
                Some(value) => Some(Number {
                    value,
                    draws: Resampled::combined(&both, normalized_mean)?,
                }),
            },
        })
    }
}

fn scoreboard(
    study: &MultiTask,
    store: &Store,
    chosen: &[usize],
    measured: &[Vec<Measured>],
) -> Result<Scoreboard> {
    let place = |wanted: &str| chosen.iter().position(|&row| name(study, row) == wanted);
    let fine_tuned = place(FINE_TUNED).context("no row of fine-tuned models")?;
    let numbers = measured
        .iter()
        .map(|own| Numbers::of(own, &measured[fine_tuned]))
        .collect::<Result<Vec<_>>>()?;
    let baseline = place(&study.recipe.baseline).context("no row of the baseline")?;
    let mut rows = Vec::new();
    for (at, (&row, own)) in chosen.iter().zip(&numbers).enumerate() {
        let origin = &study.rows[row].origin;
        let is_tested = matches!(origin, Origin::Merge(..)) && at != baseline;
        let other = is_tested.then(|| &numbers[baseline]);
        let tasks = own.tasks.iter().enumerate();
        let tasks = tasks.map(|(task, number)| number.score(other.map(|other| &other.tasks[task])));
        let normalized = own.normalized.as_ref().map(|number| {
            let other = other.and_then(|other| other.normalized.as_ref());
            number.score(other)
        });
        rows.push(ScoreRow {
            name: name(study, row).to_owned(),
            kind: match origin {
                Origin::Pretrained => RowKind::Pretrained,
                Origin::FineTuned => RowKind::FineTuned,
                Origin::Copy => RowKind::Copy,
                Origin::Merge(..) => RowKind::Merge,
            },
            parameters: match origin {
                Origin::Merge(merge, _) => parameters(merge),
                _ => String::new(),
            },
            scores: tasks.collect::<Result<_>>()?,
            mean: own.mean.score(other.map(|other| &other.mean))?,
            normalized_mean: normalized.transpose()?,
            cost: match origin {
                Origin::Merge(merge, steps) => Some(cost(merge, steps, store)),
                _ => None,
            },
        });
    }
    let mut board = Scoreboard {
        tasks: study
            .recipe
            .tasks
            .iter()
            .map(|task| task.dataset.clone())
            .collect(),
        baseline: study.recipe.baseline.clone(),
        rows,
        agreement: Some(agreement(study, store, chosen, measured)?),
        notes: Vec::new(),
    };
    board.correct();
    board.notes = notes(&study.recipe, &board, !study.swept.is_empty());
    Ok(board)
}

/// The predictions of advice for the merges of the table, beside their measured numbers.
fn agreement(
    study: &MultiTask,
    store: &Store,
    chosen: &[usize],
    measured: &[Vec<Measured>],
) -> Result<Agreement> {
    let predictions = advice::read(store, &study.advice)?;
    let mut candidates = Vec::new();
    for (&row, own) in chosen.iter().zip(measured) {
        let Origin::Merge(merge, _) = &study.rows[row].origin else {
            continue;
        };
        let values: Vec<f64> = own.iter().map(|of| of.value).collect();
        let predicted = advice::prediction(&predictions, &merge.point);
        candidates.push(Candidate {
            name: name(study, row).to_owned(),
            predicted: predicted.map(|of| (of.score, of.rules())),
            mean: mean(&values).context("a study without tasks")?,
            draws: own.iter().map(|of| &of.draws).collect(),
        });
    }
    // The pictures of tasks have the seeds below.
    let tasks = Bootstrap::new(study.recipe.resamples, study.recipe.tasks.len() as u64)?;
    Ok(Agreement::new(&candidates, &tasks)?)
}

/// Parameters of a merge for people.
fn parameters(merge: &Merge) -> String {
    let said = merge.point.parameters.iter().map(|(key, value)| {
        let value = match value.as_str() {
            Some(text) => text.to_owned(),
            None => value.to_string(),
        };
        let is_chosen = merge.point.at.as_ref().is_some_and(|(at, _)| at == key);
        format!("{key} {value}{}", if is_chosen { " (chosen)" } else { "" })
    });
    said.collect::<Vec<_>>().join(", ")
}

/// The cost of a merge: its own step, gram matrices, and the restoring of tasks' models.
fn cost(merge: &Merge, steps: &[String], store: &Store) -> MergeCost {
    let steps: BTreeSet<&String> = steps.iter().collect();
    let costs = steps.into_iter().map(|step| store.kept(step)?.cost);
    let total: Option<Vec<Cost>> = costs.collect();
    let total = total.map(|costs| costs.into_iter().fold(Cost::default(), Cost::and));
    let mut data = Vec::new();
    if merge.has_grams {
        data.push("pictures without labels");
    }
    if merge.point.at.is_some() {
        data.push("labels to choose");
    }
    if merge.has_masks {
        data.push("which task it is");
    }
    MergeCost {
        processor_seconds: total.map(|cost| cost.processor_seconds),
        peak_bytes: total.map(|cost| cost.peak_bytes),
        data: match data.is_empty() {
            true => "none".into(),
            false => data.join(", "),
        },
    }
}

/// Means, tests and costs for a terminal, and predictions.
fn for_terminal(board: &Scoreboard) -> String {
    let advised = board.agreement.as_ref().map(Agreement::table);
    let tables = [Some((board.summary(), 2)), advised.map(|table| (table, 1))];
    let tables = tables.into_iter().flatten();
    let tables = tables.map(|(table, n_left)| aligned(table, n_left));
    tables.collect::<Vec<_>>().join("\n")
}

/// A table whose first columns are text.
fn aligned(table: ScoreTable, n_left: usize) -> String {
    let columns = table.headings.into_iter().enumerate();
    let columns = columns.map(|(at, heading)| {
        let align = if at < n_left {
            Align::Left
        } else {
            Align::Right
        };
        (heading, align)
    });
    let mut aligned = Table::new(columns.collect());
    for row in table.rows {
        aligned.row(row);
    }
    aligned.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normalized_mean_is_that_of_shares_and_not_a_share_of_means() {
        // (0.4 / 0.8 + 0.9 / 0.9) / 2, where the means would give 1.3 / 1.7.
        assert_eq!(normalized_mean(&[0.4, 0.9, 0.8, 0.9]), Some(0.75));
        assert_eq!(normalized_mean(&[0.4, 0.9, 0.0, 0.9]), None);
        assert_eq!(mean(&[]), None);
    }
}
