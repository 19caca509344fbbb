//! The mixing of the pairs of a step.

use merge::random::{Draws, Sequence};

/// The draws of a step: one share for the whole batch, and the side that is mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixDraw {
    /// Share of a row itself; the rest is its partner's.
    pub alpha: f64,
    /// Whether pictures are mixed, else the features of texts.
    pub mixes_images: bool,
}

impl MixDraw {
    /// The draw of a step, the same on all ranks: the share by a beta distribution with both of its
    /// numbers `beta`, up to 1, then a coin.
    #[must_use]
    pub fn of(seed: u64, step: u64, beta: f64) -> Self {
        let mut draws = Draws::new(seed, &format!("mixup of step {step}")).sequence();
        Self {
            alpha: symmetric_beta(beta, &mut draws),
            mixes_images: draws.uniform() > 0.5,
        }
    }
}

/// A draw of the beta distribution with both of its numbers `beta`, up to 1.
///
/// Jöhnk 1964, in logarithms, for powers of small numbers have no room in `f64`.
fn symmetric_beta(beta: f64, draws: &mut Sequence) -> f64 {
    loop {
        let [x, y] = [(); 2].map(|()| draws.uniform().ln() / beta);
        let most = x.max(y);
        // Two draws of zero have no share.
        if most == f64::NEG_INFINITY {
            continue;
        }
        let (a, b) = ((x - most).exp(), (y - most).exp());
        // X + Y ≤ 1 in logarithms.
        if most + (a + b).ln() <= 0.0 {
            return a / (a + b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_symmetric_and_has_the_variance_of_its_distribution() {
        for beta in [0.1, 0.5, 1.0] {
            let mut draws = Draws::new(5, "beta").sequence();
            let n = 20_000;
            let drawn: Vec<f64> = (0..n).map(|_| symmetric_beta(beta, &mut draws)).collect();
            let mean = drawn.iter().sum::<f64>() / f64::from(n);
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
            assert!((mean - 0.5).abs() < 0.015, "{beta}: {mean}");
            // 1 / (4 (2 beta + 1))
            let expected = 0.25 / (2.0 * beta + 1.0);
            assert!(
                (variance - expected).abs() < 0.02 * expected,
                "{beta}: {variance}"
            );
        }
    }
}
