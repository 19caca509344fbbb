//! McNemar's exact test: whether two models are right equally often, from the examples on which they differ.
//!
//! Reference: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages",
//! Psychometrika 12, <https://doi.org/10.1007/BF02295996>.

use serde::Serialize;
use statrs::distribution::{Binomial, DiscreteCDF};

/// The outcome of the test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Examples that the first model alone has right.
    pub only_first: u64,
    /// Examples that the second model alone has right.
    pub only_second: u64,
    /// The two-sided probability of so uneven a split if either were as likely: twice the smaller tail of the binomial
    /// distribution, at most 1.
    pub p: f64,
}

/// The test of pairs of a first and a second model, on independent examples. `None` unless all values are 0 or 1.
#[must_use]
pub fn mcnemar(pairs: &[(f64, f64)]) -> Option<McNemar> {
    let is_judgement = |value: f64| value == 0.0 || value == 1.0;
    if !pairs
        .iter()
        .all(|&(one, other)| is_judgement(one) && is_judgement(other))
    {
        return None;
    }
    let only_first = pairs.iter().filter(|(one, other)| one > other).count() as u64;
    let only_second = pairs.iter().filter(|(one, other)| one < other).count() as u64;
    let n = only_first + only_second;
    let p = match Binomial::new(0.5, n) {
        Ok(split) if n > 0 => (2.0 * split.cdf(only_first.min(only_second))).min(1.0),
        _ => 1.0,
    };
    Some(McNemar {
        only_first,
        only_second,
        p,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(only_first: usize, only_second: usize) -> f64 {
        let mut pairs = vec![(1.0, 0.0); only_first];
        pairs.extend(vec![(0.0, 1.0); only_second]);
        pairs.extend([(1.0, 1.0), (0.0, 0.0)]);
        mcnemar(&pairs).expect("judgements").p
    }

    #[test]
    fn p_is_that_of_the_binomial_distribution() {
        // 2 (1 + 5) / 2⁵ and 2 (1 + 10 + 45) / 2¹⁰.
        assert!((p(1, 4) - 0.375).abs() < 1e-12);
        assert!((p(8, 2) - 0.109375).abs() < 1e-12);
        assert_eq!((p(0, 0), p(3, 3)), (1.0, 1.0));
        // 2 Σ C(70, k) / 2⁷⁰ over k up to 20.
        assert!((p(20, 50) - 0.000_440_285_006_513_968).abs() < 1e-12);
    }

    #[test]
    fn shares_are_no_judgements() {
        assert_eq!(mcnemar(&[(0.5, 1.0)]), None);
    }
}
