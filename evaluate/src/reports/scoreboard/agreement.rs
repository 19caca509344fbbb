//! How far the order of methods that advice predicts agrees with the order that was measured.

use serde::{Deserialize, Serialize};

use crate::metrics::bootstrap::{Bootstrap, Interval, Resampled};
use crate::metrics::rank_correlation::{kendall, ranks, spearman};
use crate::sample::{Ratio, Sample};
use crate::{Error, Result};

/// Two methods can only agree or oppose each other: from this many a correlation is reported.
pub const LEAST_METHODS: usize = 3;

/// A prediction for each merge that has one, beside its measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The merges: first those with a prediction, the most promising first; then the others in the order of the table.
    pub methods: Vec<Advised>,
    /// Spearman's ρ of predicted score and measured mean; none for fewer than three predictions or without any order.
    pub spearman: Option<Correlation>,
    /// Kendall's τ_b of the same.
    pub kendall: Option<Correlation>,
}

/// A merge with its prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advised {
    /// The name of its row.
    pub name: String,
    /// Its measured mean accuracy over tasks, a fraction.
    pub mean: f64,
    /// Its prediction; none where advice does not rank the method.
    pub prediction: Option<Ranks>,
}

/// Ranks of a merge among those with a prediction, from 1 for the best; equal ones share their mean rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// The number that orders advice: no accuracy.
    pub score: f64,
    /// By that score.
    pub predicted: f64,
    /// By measured mean accuracy.
    pub measured: f64,
    /// The rules that have moved the score.
    pub rules: Vec<String>,
}

/// A rank correlation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// From −1 to 1.
    pub value: f64,
    /// Of 95%, by the bootstrap over tasks and the pictures of each; none where no draw has an order.
    pub interval: Option<Interval>,
}

/// A merge, before it is compared with others.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The name of its row.
    pub name: String,
    /// The score that advice gives it, and the rules that have moved it.
    pub predicted: Option<(f64, Vec<String>)>,
    /// Its mean accuracy over tasks.
    pub mean: f64,
    /// Its accuracy on each task, on every draw of the task's pictures.
    pub draws: Vec<&'a Resampled>,
}

impl Agreement {
    /// Compares predictions with measurements. Each draw takes as many tasks as there are, with replacement, under the seed of
    /// `tasks`, and of each the accuracy on its own draw of pictures; a task that is taken twice counts twice.
    ///
    /// # Errors
    /// [`Error::NotPaired`] when merges were not measured on the same tasks, or not drawn equally often.
    pub fn new(candidates: &[Candidate<'_>], tasks: &Bootstrap) -> Result<Self> {
        let n_tasks = candidates.first().map_or(0, |first| first.draws.len());
        if let Some(other) = candidates.iter().find(|of| of.draws.len() != n_tasks) {
            return Err(Error::NotPaired {
                fault: format!("{n_tasks} and {} tasks", other.draws.len()),
            });
        }
        let ranked = candidates
            .iter()
            .filter_map(|of| Some((of, of.predicted.as_ref()?)));
        let (ranked, predictions): (Vec<_>, Vec<_>) = ranked.unzip();
        let scores: Vec<f64> = predictions.iter().map(|(score, _)| *score).collect();
        let means: Vec<f64> = ranked.iter().map(|of| of.mean).collect();
        let shares = tasks.resample(&shares(n_tasks));
        let of_methods = ranked
            .iter()
            .flat_map(|of| of.draws.iter().map(|draws| (*draws, 0)));
        let parts: Vec<(&Resampled, usize)> = of_methods
            .chain((0..n_tasks).map(|task| (&shares, task)))
            .collect();
        let correlation = |of: fn(&[(f64, f64)]) -> Option<f64>| -> Result<Option<Correlation>> {
            if ranked.len() < LEAST_METHODS {
                return Ok(None);
            }
            let Some(value) = of(&paired(&scores, &means)) else {
                return Ok(None);
            };
            let on_draw = |values: &[f64]| {
                let (accuracies, shares) = values.split_at(scores.len() * n_tasks);
                let mean = |own: &[f64]| own.iter().zip(shares).map(|(a, share)| a * share).sum();
                let means: Vec<f64> = accuracies.chunks(n_tasks.max(1)).map(mean).collect();
                of(&paired(&scores, &means))
            };
            let interval = Resampled::combined(&parts, on_draw)?.interval(0);
            Ok(Some(Correlation { value, interval }))
        };
        let (spearman, kendall) = (correlation(spearman)?, correlation(kendall)?);
        let mut of_ranks = ranks(&scores).into_iter().zip(ranks(&means));
        let methods = candidates.iter().map(|of| Advised {
            name: of.name.clone(),
            mean: of.mean,
            prediction: of.predicted.as_ref().and_then(|(score, rules)| {
                let (predicted, measured) = of_ranks.next()?;
                Some(Ranks {
                    score: *score,
                    predicted,
                    measured,
                    rules: rules.clone(),
                })
            }),
        });
        let mut methods: Vec<Advised> = methods.collect();
        let place = |of: &Advised| {
            of.prediction
                .as_ref()
                .map_or(f64::INFINITY, |ranks| ranks.predicted)
        };
        methods.sort_by(|one, other| place(one).total_cmp(&place(other)));
        Ok(Self {
            methods,
            spearman,
            kendall,
        })
    }

    /// How many merges have a prediction.
    #[must_use]
    pub fn n_predicted(&self) -> usize {
        self.methods
            .iter()
            .filter(|of| of.prediction.is_some())
            .count()
    }

    /// The merge that advice puts first, and of those with a prediction the best; of equal ones the first.
    #[must_use]
    pub fn first_and_best(&self) -> Option<(&Advised, &Advised)> {
        let mut ranked = self.methods.iter().filter(|of| of.prediction.is_some());
        let first = ranked.next()?;
        let best = ranked.fold(
            first,
            |best, of| if of.mean > best.mean { of } else { best },
        );
        Some((first, best))
    }
}

fn paired(scores: &[f64], means: &[f64]) -> Vec<(f64, f64)> {
    scores.iter().copied().zip(means.iter().copied()).collect()
}

/// A sample whose units are tasks, and whose quantities are the share of each in a draw.
fn shares(n_tasks: usize) -> Sample {
    let mut sample = Sample::new(n_tasks);
    for task in 0..n_tasks {
        let cases = (0..n_tasks).map(|other| (other, f64::from(u8::from(other == task))));
        sample.report(task.to_string(), Ratio::of_cases(cases));
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 2000;

    /// Accuracy on a task of `n` pictures of which `n_right` are right, on every draw.
    fn drawn(seed: u64, n: usize, n_right: usize) -> Resampled {
        let mut sample = Sample::new(n);
        let cases = (0..n).map(|unit| (unit, f64::from(u8::from(unit < n_right))));
        sample.report("top1", Ratio::of_cases(cases));
        bootstrap(seed).resample(&sample)
    }

    fn bootstrap(seed: u64) -> Bootstrap {
        Bootstrap::new(DRAWS, seed).expect("allowed")
    }

    fn candidate<'a>(
        name: &str,
        score: Option<f64>,
        mean: f64,
        draws: &[&'a Resampled],
    ) -> Candidate<'a> {
        Candidate {
            name: name.into(),
            predicted: score.map(|score| (score, vec!["far".into()])),
            mean,
            draws: draws.to_vec(),
        }
    }

    #[test]
    fn methods_far_apart_keep_their_order_on_every_draw() {
        // 1000 pictures of either task: a tenth of accuracy is more than six standard errors.
        let draws: Vec<[Resampled; 2]> = [300, 450, 600, 900]
            .map(|right| [drawn(0, 1000, right), drawn(1, 1000, right)])
            .into();
        let of = |at: usize| [&draws[at][0], &draws[at][1]];
        // Ranks 1 2 3 by score are 2 1 3 by mean: 1 − 6 · 2 / 24, and (2 − 1) / 3.
        let candidates = [
            candidate("low", Some(60.0), 0.3, &of(0)),
            candidate("none", None, 0.9, &of(3)),
            candidate("middle", Some(80.0), 0.45, &of(1)),
            candidate("high", Some(70.0), 0.6, &of(2)),
        ];
        let found = Agreement::new(&candidates, &bootstrap(2)).expect("paired");
        for (found, value) in [(found.spearman, 0.5), (found.kendall, 1.0 / 3.0)] {
            let found = found.expect("three methods");
            let interval = found.interval.expect("draws");
            for number in [found.value, interval.low, interval.high] {
                assert!((number - value).abs() < 1e-12, "{number} {value}");
            }
        }
        let names: Vec<&str> = found.methods.iter().map(|of| of.name.as_str()).collect();
        assert_eq!(names, ["middle", "high", "low", "none"]);
        let ranks = found.methods[0].prediction.as_ref().expect("predicted");
        assert_eq!(
            (ranks.predicted, ranks.measured, ranks.score),
            (1.0, 2.0, 80.0)
        );
        assert_eq!(found.methods[3].prediction, None);
        assert_eq!(found.n_predicted(), 3);
        let (first, best) = found.first_and_best().expect("ranked");
        assert_eq!(
            (first.name.as_str(), best.name.as_str()),
            ("middle", "high")
        );
    }

    #[test]
    fn tasks_that_disagree_widen_the_interval_over_tasks() {
        // On the first task the order is as predicted, on the second the opposite: a draw of one of them alone, a quarter of
        // all each, has 1 or −1.
        let [low, middle, high] = [200, 500, 800];
        let first = [high, middle, low].map(|right| drawn(0, 1000, right));
        let second = [low, middle + 20, high + 20].map(|right| drawn(1, 1000, right));
        let candidates = [0, 1, 2].map(|at| {
            candidate(
                &at.to_string(),
                Some(90.0 - at as f64),
                0.5,
                &[&first[at], &second[at]],
            )
        });
        let candidates = candidates
            .into_iter()
            .enumerate()
            .map(|(at, of)| Candidate {
                mean: [0.5, 0.51, 0.51][at],
                ..of
            });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let found = Agreement::new(&candidates, &bootstrap(2)).expect("paired");
        let interval = found.spearman.expect("an order").interval.expect("draws");
        assert_eq!((interval.low, interval.high), (-1.0, 1.0));
    }

    #[test]
    fn two_predictions_make_no_correlation_and_uneven_tasks_are_refused() {
        let (one, other) = (drawn(0, 10, 5), drawn(1, 10, 5));
        let candidates = [
            candidate("a", Some(1.0), 0.5, &[&one, &other]),
            candidate("b", Some(2.0), 0.6, &[&one, &other]),
            candidate("c", None, 0.7, &[&one, &other]),
        ];
        let found = Agreement::new(&candidates, &bootstrap(2)).expect("paired");
        assert_eq!((found.spearman, found.kendall), (None, None));
        let uneven = [
            candidate("a", None, 0.5, &[&one]),
            candidate("b", None, 0.5, &[]),
        ];
        assert!(Agreement::new(&uneven, &bootstrap(2)).is_err());
        let nothing = Agreement::new(&[], &bootstrap(2)).expect("nothing");
        assert!(nothing.methods.is_empty() && nothing.first_and_best().is_none());
    }
}
