//! Results that can be compared with each other.

use std::collections::BTreeMap;

use super::super::published::{Benchmark, Published, Remark, Status};
use super::super::{Example, TaskResult, labels};
use super::Placed;
use super::grid::{self, Grid};
use super::sweeps::{self, Sweep};

/// Results of one task on the same examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Task, data set and split, for people.
    pub title: String,
    /// The numbers of judged items and of all items, for people.
    pub counts: String,
    /// `retrieval`, `vqa`, `nlvr2`.
    pub task: String,
    /// The numbers of whole data set, ours and published.
    pub grid: Grid,
    /// The numbers of its parts, such as types of questions.
    pub breakdown: Option<Grid>,
    /// Sweeps on these data.
    pub sweeps: Vec<Sweep>,
    /// Queries with the retrieved items: the row's name and the examples.
    pub examples: Vec<(String, Vec<Example>)>,
    /// Remarks on the numbers.
    pub remarks: Vec<String>,
}

/// The facts that results must share to stand in one table.
pub fn key(result: &TaskResult) -> String {
    let labels = ["annotations", "labels"].map(|name| match result.dataset {
        None => result.settings.get(name).map(ToString::to_string),
        Some(_) => None,
    });
    let parts = (&result.task, &result.dataset, &result.split, &result.counts);
    format!("{parts:?} {labels:?}")
}

/// All groups, in the order in which they first occur.
pub fn groups(results: &[Placed], published: &Published) -> Vec<Group> {
    let mut grouped: Vec<(String, Vec<&Placed>)> = Vec::new();
    for placed in results {
        let key = key(&placed.result);
        match grouped.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(placed),
            None => grouped.push((key, vec![placed])),
        }
    }
    let mut groups: Vec<Group> = (grouped.iter())
        .map(|(_, members)| group(members, published))
        .collect();
    let titles: Vec<String> = groups.iter().map(|group| group.title.clone()).collect();
    for (index, group) in groups.iter_mut().enumerate() {
        let same = |(other, title): (usize, &String)| other != index && *title == group.title;
        if titles.iter().enumerate().any(same) && !group.counts.is_empty() {
            group.title = format!("{} ({})", group.title, group.counts);
        }
    }
    groups
}

fn group(members: &[&Placed], published: &Published) -> Group {
    let first = &members[0].result;
    let (dataset, split) = (first.dataset.as_deref(), first.split.as_deref());
    let title = labels::heading(&first.task, dataset, split);
    let benchmark = dataset.zip(split);
    let benchmark = benchmark.and_then(|(data, split)| Benchmark::of(&first.task, data, split));
    let counts = first.counts.iter();
    let counts: Vec<String> = counts
        .map(|(what, &n)| format!("{} {what}", merge::grouped(n)))
        .collect();
    let mut remarks: Vec<String> = settings_remark(members).into_iter().collect();
    remarks.extend(candidates_remarks(members));
    remarks.extend(rerank_remarks(members));
    let left_out = first.left_out.iter();
    remarks.extend(
        left_out.map(|omission| labels::one_line(&format!("{}: {omission}.", omission.file))),
    );
    if let Some(benchmark) = benchmark {
        let (name, size) = benchmark.size();
        if let Some((what, n)) = size
            && let Some(&own) = first.counts.get(what)
            && own != n
        {
            remarks.push(format!(
                "Published figures are of {name} with its {} {what}; ours are of {}, so the two \
                 cannot be compared.",
                merge::grouped(n),
                merge::grouped(own)
            ));
        }
        let of_data = |remark: &&Remark| remark.on == Some(benchmark);
        remarks.extend(published.remarks.iter().filter(of_data).map(in_words));
    }
    let examples = members.iter().filter(|m| !m.result.examples.is_empty());
    Group {
        title,
        counts: counts.join(", "),
        task: first.task.clone(),
        grid: grid::whole(members, benchmark, published),
        breakdown: grid::breakdown(members),
        sweeps: sweeps::sweeps(members, published),
        examples: examples
            .map(|m| (m.name.clone(), m.result.examples.clone()))
            .collect(),
        remarks,
    }
}

/// A remark as a sentence.
pub fn in_words(remark: &Remark) -> String {
    match (&remark.quote, remark.status) {
        (Some(quote), Status::Secondary) => {
            format!(
                "Published: {}: {quote} (as cited by {}).",
                remark.what, remark.source
            )
        }
        (Some(quote), _) => format!("Published: {}: {quote} ({}).", remark.what, remark.source),
        (None, _) => format!(
            "Published: {}: n/a (not sourced; {}).",
            remark.what, remark.source
        ),
    }
}

/// Settings in which the results of a table differ, for then their numbers differ for that too.
fn settings_remark(members: &[&Placed]) -> Option<String> {
    let mut values: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let names = members.iter().flat_map(|m| m.result.settings.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        for member in members {
            let value = member.result.settings.get(name);
            let value = value.map_or_else(|| "not said".to_owned(), plain);
            let known = values.entry(name).or_default();
            if !known.contains(&value) {
                known.push(value);
            }
        }
    }
    let differing: Vec<String> = (values.into_iter())
        .filter(|(_, values)| values.len() > 1)
        .map(|(name, values)| format!("{} ({})", name.replace('_', " "), values.join("; ")))
        .collect();
    (!differing.is_empty()).then(|| {
        format!(
            "Measured with different settings: {}.",
            differing.join(", ")
        )
    })
}

/// A remark on each pair of values that two settings have, with the names of the results that have them.
fn remarks_on(
    settings: [&str; 2],
    members: &[&Placed],
    remark: impl Fn(&str, [&str; 2]) -> String,
) -> Vec<String> {
    let mut names: BTreeMap<[String; 2], Vec<&str>> = BTreeMap::new();
    for member in members {
        let [a, b] = settings.map(|name| member.result.settings.get(name).map(plain));
        if let (Some(a), Some(b)) = (a, b) {
            names.entry([a, b]).or_default().push(&member.name);
        }
    }
    let remarks = names.iter().map(|([a, b], names)| {
        let remark = remark(&names.join(", "), [a, b]);
        labels::one_line(&remark)
    });
    remarks.collect()
}

/// By whose scores pairs were chosen, where a model was not asked of all.
fn candidates_remarks(members: &[&Placed]) -> Vec<String> {
    remarks_on(
        ["candidates", "candidates_from"],
        members,
        |names, [n, file]| {
            format!(
                "{names}: only candidates were scored, the {n} best texts of each image and images of each text by the scores in \
             {file}; other pairs stand behind them in the order of those scores."
            )
        },
    )
}

/// Remarks on the number of items ranked once more, and on the order of the others.
fn rerank_remarks(members: &[&Placed]) -> Vec<String> {
    remarks_on(["rerank", "rerank_rest"], members, |names, [k, rest]| {
        let others = match rest {
            "tied" => "all others are tied behind them",
            _ => "all others stand behind them in the order that they had",
        };
        format!(
            "{names}: the {k} best texts of each image and images of each text were ranked once more by image and text \
             together; {others}."
        )
    })
}

/// A setting for people: strings without quotes.
#[must_use]
pub fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
