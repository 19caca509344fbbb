//! From what the steps measured to curves, tables and sentences.

use std::collections::BTreeMap;

use anyhow::Result;
use evaluate::reports::document::{Chart, Curve, CurvePoint};
use evaluate::reports::published::Published;
use evaluate::reports::{Document, Measurement, Report, labels};
use evaluate::tasks::NumberSpec;
use serde_json::{Map, Value, json};

use super::graph::{Comparison, Equal, Judged, Point};
use super::recipe::JudgedTask;
use crate::study::results::{Findings, input, keep, read};
use crate::study::store::Store;
use crate::study::verdict::verdict;

/// The position of a point on an axis.
type Place = fn(Taken) -> f64;

/// The steps and the seconds that the run of a point took.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    steps: u64,
    seconds: f64,
}

/// Reads what the steps left, and joins it.
pub fn join(study: &Comparison, store: &Store) -> Result<Findings> {
    let clock = study.recipe.pace.clock;
    let mut taken = Vec::new();
    for point in &study.points {
        taken.push(match &point.run {
            None => Taken::default(),
            Some(run) => {
                let (steps, seconds) = clock.of_run(&store.path("", run))?;
                Taken { steps, seconds }
            }
        });
    }
    let found = Found { study, taken };
    let mut tests = Vec::new();
    let mut charts = Vec::new();
    let mut statements = Vec::new();
    let mut results: BTreeMap<String, Vec<Vec<Measurement>>> = BTreeMap::new();
    for judged in &study.judged {
        let task = &study.recipe.tasks[judged.task];
        let names = judged.names.iter().map(String::as_str);
        let report = read(store, &judged.report, names)?;
        charts.push((found.heading(task), found.charts(task, &report)));
        statements.extend(found.statements(task, &report));
        let of_points = report.results.iter().map(|r| r.measurements.clone());
        results.insert(task.slug(), of_points.collect());
        tests.push(found.table(judged, report));
    }
    let inputs: Vec<_> = tests
        .iter()
        .map(|test| input("test", test.clone()))
        .collect();
    let mut document = Document::new(&study.recipe.title, &inputs, &Published::ours()?);
    document.charts = charts;
    document.remarks.extend(found.remarks());
    document.remarks.extend(statements.iter().cloned());
    let mut more = Map::new();
    more.insert("points".into(), found.json(&results));
    more.insert("statements".into(), json!(statements));
    Ok(Findings {
        document,
        tests,
        statements,
        more,
        files: Vec::new(),
        table: None,
    })
}

struct Found<'a> {
    study: &'a Comparison,
    /// By point.
    taken: Vec<Taken>,
}

impl Found<'_> {
    fn way(&self, point: &Point) -> &str {
        &self.study.recipe.compare[point.way].name
    }

    fn points(&self) -> impl Iterator<Item = (&Point, Taken)> {
        self.study.points.iter().zip(self.taken.iter().copied())
    }

    /// Whether a point is after the last number of steps.
    fn is_last(&self, point: &Point) -> bool {
        self.study.recipe.at.steps.last() == Some(&point.steps)
    }

    fn heading(&self, task: &JudgedTask) -> String {
        labels::heading(
            task.task.name,
            Some(task.dataset()),
            Some(task.test.as_str()),
        )
    }

    /// Each number that tables of several tasks show, over steps and over seconds.
    fn charts(&self, task: &JudgedTask, report: &Report) -> Vec<Chart> {
        let numbers = task.task.numbers.iter().filter(|n| n.is_in_overview);
        let axes: [(String, Place); 2] = [
            ("steps of pre-training".into(), |taken| taken.steps as f64),
            (
                format!("{} of pre-training", self.study.recipe.pace.clock.title()),
                |taken| taken.seconds,
            ),
        ];
        let chart = |number: &NumberSpec, (parameter, place): &(String, Place)| Chart {
            parameter: parameter.clone(),
            lines: (self.study.recipe.compare.iter().enumerate())
                .map(|(way, of)| (of.name.clone(), self.curve(way, number, *place, report)))
                .collect(),
        };
        numbers
            .flat_map(|number| axes.iter().map(move |axis| chart(number, axis)))
            .filter(|chart| chart.lines.iter().any(|(_, line)| !line.points.is_empty()))
            .collect()
    }

    /// A number of all points of a way.
    fn curve(&self, way: usize, number: &NumberSpec, place: Place, report: &Report) -> Curve {
        let mut points = Vec::new();
        for ((point, taken), result) in self.points().zip(&report.results) {
            let measured = result.measurements.iter().find(|m| m.name == number.name);
            if let (true, Some(measured)) = (point.way == way, measured)
                && let Some(value) = measured.value
            {
                points.push(CurvePoint {
                    at: place(taken),
                    value,
                    interval: measured.interval,
                });
            }
        }
        points.sort_by(|a, b| a.at.total_cmp(&b.at));
        Curve {
            name: number.name.into(),
            title: number.label.into(),
            unit: number.unit,
            higher_is_better: true,
            points,
        }
    }

    /// The results after the last number of steps, and after as long.
    fn table(&self, judged: &Judged, mut report: Report) -> Report {
        let points = &self.study.points;
        keep(&mut report, |index| self.is_last(&points[index]));
        let first = &self.study.recipe.compare[0].name;
        for result in &mut report.results {
            let at = judged.names.iter().position(|name| *name == result.name);
            if let Some(at) = at {
                let (way, taken) = (self.way(&points[at]), self.taken[at]);
                result.name = match points[at].equal {
                    Equal::Steps => format!("{way}, {} steps", taken.steps),
                    Equal::Seconds => format!("{way}, as long as {first}"),
                };
            }
            // Pictures of every way are no comparison of ways.
            result.examples.clear();
        }
        report
    }

    /// Statements about the headline number that the paired tests after the last number of steps support.
    fn statements(&self, task: &JudgedTask, report: &Report) -> Vec<String> {
        let mut said = Vec::new();
        for comparison in &report.comparisons {
            let (at, against) = (comparison.result, comparison.against);
            let headline = task.task.headline;
            let differences = comparison.differences.iter();
            let found = differences.into_iter().find(|d| d.name == headline);
            let (Some(point), Some(found)) = (self.study.points.get(at), found) else {
                continue;
            };
            if !self.is_last(point) || against != 0 {
                continue;
            }
            let (own, first) = (self.taken[at], self.taken[against]);
            let (way, other) = (self.way(point), self.way(&self.study.points[against]));
            let clock = self.study.recipe.pace.clock.title();
            let after = match point.equal {
                Equal::Steps => format!("after {} steps each", own.steps),
                Equal::Seconds => format!(
                    "after {:.1} {clock} ({} steps) and {:.1} ({})",
                    own.seconds, own.steps, first.seconds, first.steps
                ),
            };
            let heading = self.heading(task);
            if let Some(what) = verdict(task.task, found, [way, other]) {
                said.push(format!("{heading}, {after}: {what}"));
            }
        }
        said
    }

    /// Remarks on the way in which the comparison was made.
    fn remarks(&self) -> Vec<String> {
        let recipe = &self.study.recipe;
        let first = &recipe.compare[0].name;
        let mut remarks = vec![
            "All ways start from the same weights and go through the same examples in the same order. Each point of \
             a curve is a run of its own, whose learning rate ends with it; it was then fine-tuned as all others."
                .to_owned(),
        ];
        if recipe.at.equal_seconds {
            remarks.push(format!(
                "As long as {first}: as many steps as take as long, by {} short runs of each way in turn. Seconds \
                 are {} of all steps of a run, without its start and without keeping states.",
                recipe.pace.rounds,
                recipe.pace.clock.title()
            ));
        }
        remarks
    }

    fn json(&self, results: &BTreeMap<String, Vec<Vec<Measurement>>>) -> Value {
        let point = |(at, (point, taken)): (usize, (&Point, Taken))| {
            let of_tasks = results.iter();
            let of_tasks = of_tasks.map(|(task, of)| (task.clone(), json!(of[at])));
            json!({
                "way": self.way(point),
                "equal": match point.equal {
                    Equal::Steps => "steps",
                    Equal::Seconds => "seconds",
                },
                "first_way_steps": point.steps,
                "steps": taken.steps,
                "seconds": taken.seconds,
                "measurements": of_tasks.collect::<Map<_, _>>(),
            })
        };
        self.points().enumerate().map(point).collect()
    }
}
