//! Sentences on merges, seeds and distances that the numbers of a study support.

use anyhow::Result;
use evaluate::metrics::rank_correlation::{p_of_spearman, spearman};
use evaluate::reports::file::{self, Source};
use evaluate::reports::{Report, labels};
use merge::distance::Grain;

use super::graph::Measured;
use super::store::Store;
use super::verdict::verdict;

/// With fewer merges an order says nothing.
const LEAST_MERGES: usize = 4;

/// Tests of experts and merges against the baseline, by the headline number.
pub fn of_merges(measured: &Measured, test: &Report) -> Vec<String> {
    tests(measured, test, |name| name.to_owned())
}

/// Tests of merges after a seed against the merge after the shortest one.
pub fn of_seeds(measured: &Measured, seeds: &Report) -> Vec<String> {
    let named = |name: &str| match name {
        "the whole budget" => "the baseline".to_owned(),
        name => name.to_owned(),
    };
    tests(measured, seeds, named)
}

fn tests(measured: &Measured, report: &Report, named: impl Fn(&str) -> String) -> Vec<String> {
    let task = measured.task.task;
    let mut said = Vec::new();
    for comparison in &report.comparisons {
        let of = |index: usize| report.results.get(index);
        let (Some(own), Some(other)) = (of(comparison.result), of(comparison.against)) else {
            continue;
        };
        let mut differences = comparison.differences.iter();
        let found = differences.find(|difference| difference.name == task.headline);
        let names = [named(&own.name), named(&other.name)];
        let names = names.each_ref().map(String::as_str);
        if let Some(what) = found.and_then(|found| verdict(task, found, names)) {
            let heading = labels::heading(&own.task, own.dataset.as_deref(), own.split.as_deref());
            said.push(format!("{heading}: {what}"));
        }
    }
    said
}

/// How the order of experts by their distance agrees with the order of their merges by the headline number.
pub fn of_distances(
    measured: &Measured,
    store: &Store,
    reports: &[Option<&Report>],
) -> Result<Vec<String>> {
    let task = measured.task.task;
    let mut by_metric: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    let mut shown = None;
    for (place, model) in &measured.apart {
        let mut results = reports.iter().copied().flatten().flat_map(|r| &r.results);
        let result = results.find(|result| result.name == model.name);
        let reached = result.and_then(|result| {
            let mut numbers = result.measurements.iter();
            numbers.find(|number| number.name == task.headline)?.value
        });
        let Source::Distances(distances) = file::read_source(&store.path("", place))? else {
            continue;
        };
        for record in &distances.distances {
            // Of three experts the first two: those that every task merges.
            let is_shown =
                shown.get_or_insert_with(|| record.comparison.clone()) == &record.comparison;
            if record.grain != Grain::All || !is_shown {
                continue;
            }
            for (metric, value) in &record.values {
                let (Some(value), Some(reached)) = (*value, reached) else {
                    continue;
                };
                let name = format!("{} of {}", metric, record.comparison.replace('_', "-"));
                match by_metric.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, pairs)) => pairs.push((value, reached)),
                    None => by_metric.push((name, vec![(value, reached)])),
                }
            }
        }
    }
    let heading = labels::heading(
        task.name,
        Some(measured.task.dataset()),
        Some(&measured.task.test),
    );
    let label = task.number(task.headline).map_or("", |number| number.label);
    let sentence = |(metric, pairs): (String, Vec<(f64, f64)>)| {
        let n = pairs.len();
        let rho = spearman(&pairs).filter(|_| n >= LEAST_MERGES)?;
        let rho = format!("{rho:.2}").replace('-', "−");
        let p = p_of_spearman(&pairs).map_or_else(String::new, |p| format!(", p = {p:.2}"));
        Some(format!(
            "{heading}: over {n} pairs of experts, the distance by {metric} and {label} of their merge correlate by {rho} (Spearman{p})."
        ))
    };
    Ok(by_metric.into_iter().filter_map(sentence).collect())
}
