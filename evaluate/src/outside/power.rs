//! How many examples tell two models apart, when both answer the same ones.
//!
//! Of right and wrong answers, with ψ the share of examples on which the models differ and d the difference of their
//! accuracies, `n = (z₁₋α⁄₂ √ψ + z₁₋β √(ψ − d²))² / d²`.
//!
//! Reference: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
//! pages 207 to 211, <https://www.jstor.org/stable/2531961>; of other numbers, with σ the standard deviation of the
//! differences of examples, `n = (z₁₋α⁄₂ + z₁₋β)² σ² / d²` (Miller 2024, <https://arxiv.org/abs/2411.00640>, section 5).

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};

use crate::error::OutsideFault;

/// Steps of a search for a difference by halving: f64 has no more digits.
const HALVINGS: usize = 200;

/// How much the differences of examples spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// The share of examples on which two models differ, of answers that are right or wrong.
    Disagreement(f64),
    /// The standard deviation of the differences of examples.
    Deviation(f64),
}

/// The goal of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// The probability of a difference where there is none.
    pub alpha: f64,
    /// The probability of finding a difference that is there.
    pub power: f64,
    /// Examples that count as one, as those of a cluster do: the variance of a mean by clusters over that of independent
    /// examples.
    pub design_effect: f64,
}

impl Aim {
    /// Two-sided at `alpha`, with `power`, of independent examples.
    ///
    /// # Errors
    /// [`OutsideFault::NoPower`] unless both are between 0 and 1, and `power` above `alpha`.
    pub fn new(alpha: f64, power: f64) -> Result<Self, OutsideFault> {
        let is_share = |share: f64| share > 0.0 && share < 1.0;
        if !is_share(alpha) || !is_share(power) || power <= alpha {
            return Err(no_power(
                "alpha and power are shares between 0 and 1, and alpha is below power",
            ));
        }
        Ok(Self {
            alpha,
            power,
            design_effect: 1.0,
        })
    }

    /// The number of examples that tell a difference of `d` from none, in the unit of the numbers.
    ///
    /// # Errors
    /// [`OutsideFault::NoPower`] for a difference of 0, or one that is larger than the share of examples on which the
    /// models differ.
    pub fn examples(&self, d: f64, spread: Spread) -> Result<f64, OutsideFault> {
        let d = d.abs();
        if !d.is_finite() || d == 0.0 {
            return Err(no_power("no number of examples tells a difference of 0"));
        }
        Ok((self.needed(d, spread)? * self.design_effect)
            .ceil()
            .max(1.0))
    }

    fn needed(&self, d: f64, spread: Spread) -> Result<f64, OutsideFault> {
        let (z_alpha, z_power) = (z(1.0 - self.alpha / 2.0), z(self.power));
        let root = match spread {
            Spread::Disagreement(share) => {
                if !(0.0..=1.0).contains(&share) || share == 0.0 {
                    return Err(no_power("the disagreement is a share above 0, at most 1"));
                }
                if d > share {
                    return Err(no_power(format!(
                        "models that differ on {:.2}% of the examples cannot be {:.2} points apart",
                        100.0 * share,
                        100.0 * d
                    )));
                }
                z_alpha * share.sqrt() + z_power * (share - d * d).max(0.0).sqrt()
            }
            Spread::Deviation(sigma) => {
                if !sigma.is_finite() || sigma <= 0.0 {
                    return Err(no_power(
                        "the models give the same numbers on every example",
                    ));
                }
                (z_alpha + z_power) * sigma
            }
        };
        Ok((root / d).powi(2))
    }

    /// The smallest difference that `n` examples tell from none; none if they do not tell even the largest.
    ///
    /// # Errors
    /// As [`examples`](Self::examples)'s.
    pub fn difference(&self, n: f64, spread: Spread) -> Result<Option<f64>, OutsideFault> {
        let n = n / self.design_effect;
        if n.is_nan() || n <= 0.0 {
            return Err(no_power("there are no examples"));
        }
        let mut high = match spread {
            Spread::Disagreement(share) => share,
            // Of other numbers there is no largest difference.
            Spread::Deviation(sigma) => sigma * 1e3 / n.sqrt(),
        };
        if self.needed(high, spread)? > n {
            return Ok(None);
        }
        let mut low = 0.0;
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            match middle > 0.0 && self.needed(middle, spread)? <= n {
                true => high = middle,
                false => low = middle,
            }
        }
        Ok(Some(high))
    }
}

/// The quantile of the standard normal distribution.
fn z(share: f64) -> f64 {
    Normal::standard().inverse_cdf(share)
}

fn no_power(fault: impl Into<String>) -> OutsideFault {
    OutsideFault::NoPower {
        fault: fault.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aim() -> Aim {
        Aim::new(0.05, 0.8).expect("shares")
    }

    #[test]
    fn the_number_of_examples_is_that_of_the_formula() {
        // z = 1.959964 and 0.841621: (1.959964 √0.2 + 0.841621 √(0.2 − 0.0025))² / 0.0025 = 625.4.
        let n = aim()
            .examples(0.05, Spread::Disagreement(0.2))
            .expect("a number");
        assert_eq!(n, 626.0);
        // (1.959964 + 0.841621)² 0.25 / 0.0025 = 784.9.
        let n = aim()
            .examples(-0.05, Spread::Deviation(0.5))
            .expect("a number");
        assert_eq!(n, 785.0);
        let clustered = Aim {
            design_effect: 2.0,
            ..aim()
        };
        let n = clustered
            .examples(0.05, Spread::Deviation(0.5))
            .expect("a number");
        assert_eq!(n, 1570.0);
    }

    #[test]
    fn the_smallest_difference_needs_the_given_examples() {
        for spread in [Spread::Disagreement(0.3), Spread::Deviation(0.4)] {
            let d = aim()
                .difference(500.0, spread)
                .expect("possible")
                .expect("a difference");
            let n = aim().needed(d, spread).expect("a number");
            assert!((n - 500.0).abs() < 1e-6, "{n}");
        }
        let none = aim()
            .difference(2.0, Spread::Disagreement(0.01))
            .expect("possible");
        assert_eq!(none, None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(aim().examples(0.0, Spread::Disagreement(0.1)).is_err());
        assert!(aim().examples(0.2, Spread::Disagreement(0.1)).is_err());
        assert!(aim().examples(0.2, Spread::Deviation(0.0)).is_err());
        assert!(Aim::new(0.05, 1.0).is_err());
        assert!(Aim::new(0.5, 0.4).is_err());
    }
}
