//! Two runs on the same examples: which model is better, or that the data cannot tell.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::logs::{Example, Id, Run, TaskLog};
use super::power::Spread;
use crate::error::OutsideFault;
use crate::metrics::bootstrap::{Bootstrap, CONFIDENCE, Interval, Resampled, check_paired};
use crate::metrics::holm::holm;
use crate::metrics::mcnemar::{McNemar, mcnemar};
use crate::sample::{Ratio, Sample};
use crate::{Error, Result};

/// The name of tasks whose files do not say one.
const UNNAMED: &str = "examples";

/// Beginnings of the names of metrics of which less is better, where no results say so.
const LOWER_IS_BETTER: [&str; 9] = [
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "ter",
    "wer",
    "mae",
    "mse",
];

/// How two runs are compared.
#[derive(Clone, Copy, Debug)]
pub struct Comparing {
    /// The number of draws.
    pub n_resamples: usize,
    /// The seed of the first task's draws; each task has its own.
    pub seed: u64,
    /// Compare the examples that both runs have, though others or other versions are in one.
    pub common: bool,
}

/// The model that is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The first.
    A,
    /// The second.
    B,
}

/// Two runs compared by one metric of one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contrast {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The number of examples.
    pub n: usize,
    /// The number of clusters, of which each draw takes as many.
    pub n_clusters: usize,
    /// The mean of the first run.
    pub a: f64,
    /// The mean of the second run.
    pub b: f64,
    /// The second minus the first.
    pub difference: f64,
    /// Of 95%, of the difference, by the paired bootstrap over clusters.
    pub interval: Option<Interval>,
    /// The standard error of the difference, by clusters.
    pub standard_error: f64,
    /// Two-sided, by the paired bootstrap over clusters.
    pub p: Option<f64>,
    /// Corrected by Holm's procedure for all tests of the comparison.
    pub p_corrected: Option<f64>,
    /// The exact test of answers that are right or wrong, of independent examples.
    pub mcnemar: Option<McNemar>,
    /// The share of examples on which the two differ.
    pub disagreement: f64,
    /// The standard deviation of the differences of examples.
    pub deviation: f64,
    /// The variance by clusters over that of independent examples.
    pub design_effect: f64,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The better model, if the corrected p is below 0.05.
    pub better: Option<Better>,
}

/// The mean over tasks of the first metric of each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overall {
    /// The metric of each task.
    pub metrics: BTreeMap<String, String>,
    /// The mean of the first run.
    pub a: f64,
    /// The mean of the second run.
    pub b: f64,
    /// The second minus the first.
    pub difference: f64,
    /// Of 95%; each task is drawn by itself.
    pub interval: Option<Interval>,
    /// Two-sided, by the paired bootstrap.
    pub p: Option<f64>,
    /// The better model, if p is below 0.05.
    pub better: Option<Better>,
}

/// Everything that two runs tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// By task and metric.
    pub contrasts: Vec<Contrast>,
    /// Over all tasks, if there are several.
    pub overall: Option<Overall>,
    /// Notes for users.
    pub notes: Vec<String>,
}

impl Contrast {
    /// How much the differences of examples spread, for questions of power.
    #[must_use]
    pub fn spread(&self) -> Spread {
        match self.mcnemar {
            Some(_) => Spread::Disagreement(self.disagreement),
            None => Spread::Deviation(self.deviation),
        }
    }
}

/// Compares two runs, example by example.
///
/// # Errors
/// [`OutsideFault::NoCommonTask`], [`OutsideFault::TaskInOne`], [`OutsideFault::OtherExamples`],
/// [`OutsideFault::OtherContents`] and [`OutsideFault::OtherVersions`] unless `how.common`;
/// [`OutsideFault::NothingInCommon`].
pub fn compare(one: &Run, other: &Run, how: &Comparing) -> Result<Compared> {
    let mut compared = Compared {
        contrasts: Vec::new(),
        overall: None,
        notes: [&one.notes[..], &other.notes].concat(),
    };
    let mut headlines: Vec<Headline> = Vec::new();
    let tasks = common_tasks(one, other, how, &mut compared.notes)?;
    for (index, (name, first, second)) in tasks.into_iter().enumerate() {
        let pairs = pairs(&name, first, second, how, &mut compared.notes)?;
        let metrics = first.metrics.iter().filter(|m| second.metrics.contains(m));
        let bootstrap = Bootstrap::new(how.n_resamples, how.seed.wrapping_add(index as u64))?;
        let n_before = compared.contrasts.len();
        for metric in metrics {
            let Some(cases) = Cases::of(&name, metric, &pairs, how)? else {
                continue;
            };
            let (left, right) = (cases.sample(0), cases.sample(1));
            check_paired(&left, &right)?;
            let (left, right) = (bootstrap.resample(&left), bootstrap.resample(&right));
            let base = metric.split(',').next().unwrap_or(metric);
            let is_lower = first.lower_is_better.iter().chain(&second.lower_is_better);
            let is_lower =
                is_lower.clone().any(|name| name == base) || LOWER_IS_BETTER.contains(&base);
            let contrast = cases.contrast((&name, metric), (&left, &right), !is_lower)?;
            if compared.contrasts.len() == n_before {
                headlines.push(Headline {
                    draws: [left, right],
                    of: contrast.clone(),
                });
            }
            compared.contrasts.push(contrast);
        }
        if compared.contrasts.len() == n_before {
            return Err(Error::Outside(OutsideFault::NothingInCommon { task: name }));
        }
    }
    let alpha = 1.0 - CONFIDENCE;
    let known: Vec<f64> = compared.contrasts.iter().filter_map(|c| c.p).collect();
    let mut corrected = holm(&known).into_iter();
    for contrast in &mut compared.contrasts {
        contrast.p_corrected = contrast.p.and_then(|_| corrected.next());
        contrast.better = contrast
            .p_corrected
            .filter(|&p| p < alpha)
            .and_then(|_| better(contrast.difference, contrast.higher_is_better));
    }
    compared.overall = overall(&headlines, alpha)?;
    Ok(compared)
}

/// The first metric of a task.
struct Headline {
    draws: [Resampled; 2],
    of: Contrast,
}

/// The mean over tasks; none of a single task, or where more is better in one task and less in another.
fn overall(headlines: &[Headline], alpha: f64) -> Result<Option<Overall>> {
    let higher_is_better = match headlines {
        [first, rest @ ..] if !rest.is_empty() => first.of.higher_is_better,
        _ => return Ok(None),
    };
    if headlines
        .iter()
        .any(|task| task.of.higher_is_better != higher_is_better)
    {
        return Ok(None);
    }
    let mean = |values: &[f64]| Some(values.iter().sum::<f64>() / values.len() as f64);
    let draws = |which: usize| {
        let parts = headlines.iter().map(|task| (&task.draws[which], 0));
        Resampled::combined(&parts.collect::<Vec<_>>(), mean)
    };
    let paired = draws(1)?.paired(&draws(0)?, 0)?;
    let n = headlines.len() as f64;
    let a = headlines.iter().map(|task| task.of.a).sum::<f64>() / n;
    let b = headlines.iter().map(|task| task.of.b).sum::<f64>() / n;
    let p = paired.map(|paired| paired.p);
    let metric_of = |task: &Headline| (task.of.task.clone(), task.of.metric.clone());
    Ok(Some(Overall {
        metrics: headlines.iter().map(metric_of).collect(),
        a,
        b,
        difference: b - a,
        interval: paired.map(|paired| paired.interval),
        p,
        better: p
            .filter(|&p| p < alpha)
            .and_then(|_| better(b - a, higher_is_better)),
    }))
}

fn better(difference: f64, higher_is_better: bool) -> Option<Better> {
    let is_second = (difference > 0.0) == higher_is_better;
    (difference != 0.0).then_some(if is_second { Better::B } else { Better::A })
}

/// The tasks of both runs.
fn common_tasks<'a>(
    one: &'a Run,
    other: &'a Run,
    how: &Comparing,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, &'a TaskLog, &'a TaskLog)>> {
    let called = |task: &Option<String>| task.clone().unwrap_or_else(|| UNNAMED.to_owned());
    let alone = |of: &'a Run, than: &'a Run| {
        let tasks = of
            .tasks
            .keys()
            .filter(|task| !than.tasks.contains_key(*task));
        tasks.map(called).collect::<Vec<_>>()
    };
    let both: Vec<_> = (one.tasks.iter())
        .filter_map(|(task, log)| Some((called(task), log, other.tasks.get(task)?)))
        .collect();
    if both.is_empty() {
        let names = |of: &Run| {
            let names: Vec<String> = of.tasks.keys().map(called).take(8).collect();
            names.join(", ")
        };
        return Err(Error::Outside(OutsideFault::NoCommonTask {
            one: names(one),
            other: names(other),
        }));
    }
    for (of, than) in [(one, other), (other, one)] {
        let alone = alone(of, than);
        match (alone.first(), how.common) {
            (Some(task), false) => {
                return Err(Error::Outside(OutsideFault::TaskInOne {
                    task: task.clone(),
                    path: of.path.clone(),
                }));
            }
            (Some(_), true) => notes.push(format!(
                "{}: tasks of this run alone are left out: {}",
                of.path.display(),
                alone.join(", ")
            )),
            (None, _) => {}
        }
    }
    Ok(both)
}

type Pairs<'a> = Vec<(&'a Id, &'a Example, &'a Example)>;

/// The examples of both runs, after checks that they are the same.
fn pairs<'a>(
    task: &str,
    one: &'a TaskLog,
    other: &'a TaskLog,
    how: &Comparing,
    notes: &mut Vec<String>,
) -> Result<Pairs<'a>> {
    let task = || task.to_owned();
    for (what, version) in &one.versions {
        if let Some(found) = other.versions.get(what).filter(|found| *found != version) {
            if !how.common {
                return Err(Error::Outside(OutsideFault::OtherVersions {
                    task: task(),
                    what,
                    one: version.clone(),
                    other: found.clone(),
                }));
            }
            notes.push(format!(
                "{}: the {what} is {version} in A and {found} in B",
                task()
            ));
        }
    }
    let ids = |log: &'a TaskLog| log.examples.keys().collect::<BTreeSet<_>>();
    let (left, right) = (ids(one), ids(other));
    let n_alone = (
        left.difference(&right).count(),
        right.difference(&left).count(),
    );
    if let Some(first) = left.symmetric_difference(&right).next() {
        if !how.common {
            return Err(Error::Outside(OutsideFault::OtherExamples {
                task: task(),
                n_one: n_alone.0,
                n_other: n_alone.1,
                first: first.to_string(),
            }));
        }
        notes.push(format!(
            "{}: {} examples of A alone and {} of B alone are left out",
            task(),
            n_alone.0,
            n_alone.1
        ));
    }
    let both = left.intersection(&right);
    let both: Pairs<'a> = both
        .filter_map(|&id| Some((id, one.examples.get(id)?, other.examples.get(id)?)))
        .collect();
    let n_all = both.len();
    let differs = |one: &Option<String>, other: &Option<String>| {
        one.is_some() && other.is_some() && one != other
    };
    let is_other = |(_, left, right): &(&Id, &Example, &Example)| {
        differs(&left.content, &right.content)
            || differs(&left.target, &right.target)
            || differs(&left.cluster, &right.cluster)
    };
    let (others, same): (Pairs<'a>, Pairs<'a>) = both.into_iter().partition(|pair| is_other(pair));
    if let Some((first, ..)) = others.first() {
        if !how.common {
            return Err(Error::Outside(OutsideFault::OtherContents {
                task: task(),
                n: others.len(),
                n_all,
                first: first.to_string(),
            }));
        }
        notes.push(format!(
            "{}: {} of {n_all} examples have other contents in the two runs and are left out",
            task(),
            others.len()
        ));
    }
    let n_prompts = same
        .iter()
        .filter(|(_, one, other)| differs(&one.prompt, &other.prompt))
        .count();
    if n_prompts > 0 {
        notes.push(format!(
            "{}: {n_prompts} of {} examples were shown with another prompt, e.g. another chat template",
            task(),
            same.len()
        ));
    }
    Ok(same)
}

/// The cluster of an example, or itself where there are none.
type ClusterKey<'a> = (Option<&'a str>, Option<&'a Id>);

/// The numbers of two runs, cluster by cluster.
struct Cases {
    /// The cluster of each example, in order, and its two numbers.
    cases: Vec<(usize, [f64; 2])>,
    n_clusters: usize,
}

impl Cases {
    /// The pairs that have a metric; none if no pair has it.
    fn of(task: &str, metric: &str, pairs: &Pairs<'_>, how: &Comparing) -> Result<Option<Self>> {
        let mut clusters: BTreeMap<ClusterKey<'_>, Vec<[f64; 2]>> = BTreeMap::new();
        let (mut n_one, mut n_other, mut first) = (0, 0, None);
        for (id, one, other) in pairs {
            match (one.values.get(metric), other.values.get(metric)) {
                (Some(&one_value), Some(&other_value)) => {
                    let cluster = one.cluster.as_deref();
                    // Without clusters each example is one.
                    let own = cluster.is_none().then_some(*id);
                    clusters
                        .entry((cluster, own))
                        .or_default()
                        .push([one_value, other_value]);
                }
                (None, None) => {}
                (one, _) => {
                    *(if one.is_some() {
                        &mut n_one
                    } else {
                        &mut n_other
                    }) += 1;
                    first.get_or_insert_with(|| id.to_string());
                }
            }
        }
        if let (Some(first), false) = (first, how.common) {
            return Err(Error::Outside(OutsideFault::OtherExamples {
                task: format!("{task} {metric}"),
                n_one,
                n_other,
                first,
            }));
        }
        let n_clusters = clusters.len();
        let cases = clusters.into_values().enumerate();
        let cases = cases.flat_map(|(unit, values)| values.into_iter().map(move |v| (unit, v)));
        let cases: Vec<_> = cases.collect();
        Ok((!cases.is_empty()).then_some(Self { cases, n_clusters }))
    }

    /// The numbers of one of the two runs.
    fn sample(&self, which: usize) -> Sample {
        let mut sample = Sample::new(self.n_clusters);
        let cases = self
            .cases
            .iter()
            .map(|(unit, values)| (*unit, values[which]));
        sample.report("mean", Ratio::of_cases(cases));
        sample
    }

    fn contrast(
        &self,
        (task, metric): (&str, &str),
        (left, right): (&Resampled, &Resampled),
        higher_is_better: bool,
    ) -> Result<Contrast> {
        let n = self.cases.len() as f64;
        let mean = |which: usize| self.cases.iter().map(|(_, v)| v[which]).sum::<f64>() / n;
        let (a, b) = (mean(0), mean(1));
        let difference = b - a;
        let off = |values: &[f64; 2]| values[1] - values[0] - difference;
        let squares = self.cases.iter().map(|(_, v)| off(v).powi(2)).sum::<f64>();
        // Sums of clusters, as whose variance that of the mean is taken.
        let mut sums = vec![0.0; self.n_clusters];
        for (unit, values) in &self.cases {
            sums[*unit] += off(values);
        }
        let clustered = sums.iter().map(|sum| sum * sum).sum::<f64>();
        let pairs: Vec<(f64, f64)> = self.cases.iter().map(|(_, v)| (v[0], v[1])).collect();
        let is_independent = self.n_clusters == self.cases.len();
        let paired = right.paired(left, 0)?;
        let n_differ = pairs.iter().filter(|(one, other)| one != other).count();
        Ok(Contrast {
            task: task.to_owned(),
            metric: metric.to_owned(),
            n: self.cases.len(),
            n_clusters: self.n_clusters,
            a,
            b,
            difference,
            interval: paired.map(|paired| paired.interval),
            standard_error: clustered.sqrt() / n,
            p: paired.map(|paired| paired.p),
            p_corrected: None,
            mcnemar: is_independent.then(|| mcnemar(&pairs)).flatten(),
            disagreement: n_differ as f64 / n,
            deviation: (squares / n).sqrt(),
            design_effect: if squares > 0.0 {
                clustered / squares
            } else {
                1.0
            },
            higher_is_better,
            better: None,
        })
    }
}
