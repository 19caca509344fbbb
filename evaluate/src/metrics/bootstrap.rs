//! The uncertainty of a number: intervals and paired tests by resampling.
//!
//! Each draw takes units of the data set with replacement, as many as there are. Items that belong
//! together are one unit, so that ten captions of five images count as five, not ten. Every
//! number is computed again on each draw.
//!
//! Reference: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapters 13 and 16;
//! for paired tests Koehn 2004, <https://aclanthology.org/W04-3250>.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::sample::Sample;
use crate::{Error, Result};

/// The share of draws inside an interval.
pub const CONFIDENCE: f64 = 0.95;

/// The fewest draws that give the ends of an interval.
const LEAST: usize = 100;
const MOST: usize = 1_000_000;

/// The settings of the draws.
///
/// # Example
/// ```
/// use evaluate::metrics::{bootstrap::Bootstrap, nlvr2};
/// let right = |id: &'static str| (id, !id.ends_with('0'));
/// let sample = nlvr2::sample(["dev-0-0-0", "dev-1-0-1", "dev-2-0-1"].map(right));
/// let draws = Bootstrap::new(1000, 0)?.resample(&sample);
/// let interval = draws.interval(0).expect("defined on every draw");
/// assert!(interval.low <= 2.0 / 3.0 && 2.0 / 3.0 <= interval.high);
/// # Ok::<(), evaluate::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    n_resamples: usize,
    seed: u64,
}

impl Bootstrap {
    /// `n_resamples` draws of all units under `seed`.
    ///
    /// # Errors
    /// [`Error::ResampleCount`] for fewer than 100 or more than a million.
    pub fn new(n_resamples: usize, seed: u64) -> Result<Self> {
        if !(LEAST..=MOST).contains(&n_resamples) {
            return Err(Error::ResampleCount {
                n: n_resamples,
                least: LEAST,
                most: MOST,
            });
        }
        Ok(Self { n_resamples, seed })
    }

    /// Every quantity of `sample` on every draw.
    ///
    /// Draw `i` takes its numbers from stream `i` of ChaCha8 under the seed, so results depend on
    /// neither the threads nor the machine, and samples with equally many units see the same draws.
    #[must_use]
    pub fn resample(&self, sample: &Sample) -> Resampled {
        let values = (0..self.n_resamples)
            .into_par_iter()
            .map_init(
                || vec![0u32; sample.n_units],
                |times, draw| {
                    self.draw(draw, times);
                    let sums: Vec<_> = sample
                        .ratios
                        .iter()
                        .map(|ratio| ratio.weighted(|unit| f64::from(times[unit])))
                        .collect();
                    let quantities = sample.quantities.iter();
                    quantities.map(|q| q.combine(&sums)).collect()
                },
            )
            .collect();
        Resampled { values }
    }

    /// The number of times that each unit is in draw `draw`.
    fn draw(&self, draw: usize, times: &mut [u32]) {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(draw as u64);
        times.fill(0);
        for _ in 0..times.len() {
            // The upper half of the product is uniform to within n / 2⁶⁴.
            let product = u128::from(generator.next_u64()) * times.len() as u128;
            times[(product >> 64) as usize] += 1;
        }
    }
}

/// An interval around a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The difference of two numbers on the same units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The interval of the difference.
    pub interval: Interval,
    /// The probability of such a difference if there were none; two-sided. The smallest value possible is 2 / (draws +
    /// 1).
    pub p: f64,
}

/// The quantities of a sample on every draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampled {
    /// Draws × quantities; `None` where a draw holds no case of a quantity.
    values: Vec<Vec<Option<f64>>>,
}

impl Resampled {
    /// The 95% interval of a quantity: the 2.5th and 97.5th percentile of the draws that hold a
    /// case of it. `None` if none does.
    #[must_use]
    pub fn interval(&self, quantity: usize) -> Option<Interval> {
        let values = self.values.iter().filter_map(|draw| draw[quantity]);
        percentiles(values.collect())
    }

    /// Combines a quantity of several samples, draw by draw, to one quantity: samples of different data are drawn under
    /// different seeds. A draw on which one of them holds no case, or on which `combine` returns nothing, holds none of
    /// the result.
    ///
    /// # Errors
    /// [`Error::NotPaired`] when they were not drawn equally often.
    pub fn combined(
        parts: &[(&Self, usize)],
        combine: impl Fn(&[f64]) -> Option<f64>,
    ) -> Result<Self> {
        let counts = || parts.iter().map(|(part, _)| part.values.len());
        let n = counts().next().unwrap_or_default();
        if let Some(other) = counts().find(|&count| count != n) {
            return Err(Error::NotPaired {
                fault: format!("{n} and {other} draws"),
            });
        }
        let draw = |draw: usize| {
            let of_parts = parts.iter();
            let values: Option<Vec<f64>> = of_parts
                .map(|(part, quantity)| part.values[draw][*quantity])
                .collect();
            vec![values.and_then(|values| combine(&values))]
        };
        Ok(Self {
            values: (0..n).map(draw).collect(),
        })
    }

    /// Tests whether a quantity of `self` differs from that of `other`, on the same draws: the
    /// interval of `self − other`, and twice the share of draws on the rarer side of zero, draws
    /// at zero counting for both sides. `None` if no draw holds a case of it.
    ///
    /// # Errors
    /// [`Error::NotPaired`] when the two were not drawn equally often.
    pub fn paired(&self, other: &Self, quantity: usize) -> Result<Option<Paired>> {
        if self.values.len() != other.values.len() {
            return Err(Error::NotPaired {
                fault: format!("{} and {} draws", self.values.len(), other.values.len()),
            });
        }
        let pairs = self.values.iter().zip(&other.values);
        let differences: Vec<f64> = pairs
            .filter_map(|(own, other)| Some(own[quantity]? - other[quantity]?))
            .collect();
        let n_up = differences.iter().filter(|&&d| d >= 0.0).count();
        let n_down = differences.iter().filter(|&&d| d <= 0.0).count();
        let rarer = (n_up.min(n_down) + 1) as f64 / (differences.len() + 1) as f64;
        Ok(percentiles(differences).map(|interval| Paired {
            interval,
            p: (2.0 * rarer).min(1.0),
        }))
    }
}

/// Checks that two samples are of the same units, so that their draws can be paired.
///
/// # Errors
/// [`Error::NotPaired`].
pub fn check_paired(left: &Sample, right: &Sample) -> Result<()> {
    if left.n_units != right.n_units {
        return Err(Error::NotPaired {
            fault: format!("{} and {} units", left.n_units, right.n_units),
        });
    }
    let names = |sample: &Sample| -> Vec<String> {
        sample.quantities.iter().map(|q| q.name.clone()).collect()
    };
    if names(left) != names(right) {
        return Err(Error::NotPaired {
            fault: "the numbers are not of the same kinds".into(),
        });
    }
    let cases = |sample: &Sample| -> Vec<(usize, f64)> {
        let parts = sample.ratios.iter().flat_map(|ratio| &ratio.contributions);
        parts.map(|part| (part.unit, part.denominator)).collect()
    };
    if cases(left) != cases(right) {
        return Err(Error::NotPaired {
            fault: "the units do not hold the same cases".into(),
        });
    }
    Ok(())
}

fn percentiles(mut values: Vec<f64>) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| {
        let position = share * values.len().checked_sub(1)? as f64;
        let (below, above) = (
            values[position.floor() as usize],
            values[position.ceil() as usize],
        );
        Some(below + (above - below) * position.fract())
    };
    Some(Interval {
        low: at(tail)?,
        high: at(1.0 - tail)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Ratio;

    fn coin(n: usize, n_heads: usize) -> Sample {
        let mut sample = Sample::new(n);
        let cases = (0..n).map(|unit| (unit, f64::from(unit < n_heads)));
        sample.report("heads", Ratio::of_cases(cases));
        sample
    }

    #[test]
    fn the_interval_of_a_share_is_that_of_its_binomial() {
        // Standard error sqrt(0.3 · 0.7 / 1000) = 0.01449; 1.96 of them are 0.0284.
        let draws = Bootstrap::new(4000, 1)
            .expect("allowed")
            .resample(&coin(1000, 300));
        let interval = draws.interval(0).expect("defined");
        assert!((interval.low - 0.2716).abs() < 0.002, "{interval:?}");
        assert!((interval.high - 0.3284).abs() < 0.002, "{interval:?}");
    }

    #[test]
    fn every_draw_holds_as_many_units_as_there_are() {
        let bootstrap = Bootstrap::new(100, 5).expect("allowed");
        let (mut first, mut second) = ([0; 37], [0; 37]);
        bootstrap.draw(0, &mut first);
        bootstrap.draw(1, &mut second);
        assert_eq!(first.iter().sum::<u32>(), 37);
        assert_ne!(first, second);
    }

    #[test]
    fn draws_do_not_depend_on_the_threads() {
        let bootstrap = Bootstrap::new(300, 9).expect("allowed");
        let on = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build();
            pool.expect("threads")
                .install(|| bootstrap.resample(&coin(50, 20)))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn equal_samples_do_not_differ_and_opposite_ones_do() {
        let bootstrap = Bootstrap::new(1000, 0).expect("allowed");
        let (few, many) = (
            bootstrap.resample(&coin(200, 20)),
            bootstrap.resample(&coin(200, 180)),
        );
        let same = few.paired(&few, 0).expect("paired").expect("defined");
        assert_eq!(
            (same.p, same.interval.low, same.interval.high),
            (1.0, 0.0, 0.0)
        );
        let other = many.paired(&few, 0).expect("paired").expect("defined");
        assert_eq!(other.p, 2.0 / 1001.0);
        assert!(other.interval.low > 0.7 && other.interval.high < 0.9);
    }

    #[test]
    fn the_mean_of_two_tasks_varies_as_independent_draws_do() {
        let draws = |seed, n, n_heads| {
            let bootstrap = Bootstrap::new(4000, seed).expect("allowed");
            bootstrap.resample(&coin(n, n_heads))
        };
        let (one, other) = (draws(1, 400, 120), draws(2, 400, 280));
        let mean = |values: &[f64]| Some(values.iter().sum::<f64>() / values.len() as f64);
        let both = Resampled::combined(&[(&one, 0), (&other, 0)], mean).expect("paired");
        let interval = both.interval(0).expect("defined");
        // Half the root of two variances of 0.3 · 0.7 / 400 is 0.0162; 1.96 of them are 0.0318.
        assert!((interval.low - 0.4682).abs() < 0.003, "{interval:?}");
        assert!((interval.high - 0.5318).abs() < 0.003, "{interval:?}");
        let fewer = Bootstrap::new(100, 3)
            .expect("allowed")
            .resample(&coin(5, 2));
        assert!(Resampled::combined(&[(&one, 0), (&fewer, 0)], mean).is_err());
    }

    #[test]
    fn a_quantity_without_cases_has_no_interval() {
        let mut sample = coin(5, 2);
        sample.report("never", Ratio::default());
        let draws = Bootstrap::new(100, 0).expect("allowed").resample(&sample);
        assert_eq!(draws.interval(1), None);
        assert_eq!(sample.value(&sample.quantities[1]), None);
    }

    #[test]
    fn other_units_cannot_be_paired() {
        assert!(check_paired(&coin(5, 2), &coin(5, 3)).is_ok());
        let error = check_paired(&coin(5, 2), &coin(6, 2)).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "no paired test is possible: 5 and 6 units"
        );
    }
}
