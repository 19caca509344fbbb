//! The arithmetic of a run: sums that add up over runs, tensors, modules and blocks.

use super::Metric;

/// Independent partial sums, so that the processor need not wait for each addition.
const LANES: usize = 4;

/// The sums over a pair of vectors from which L2, cosine dissimilarity and SSD follow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// Elements.
    pub(super) n: u64,
    /// `Σ (aᵢ − bᵢ)²`
    pub(super) apart_squared: f64,
    /// `Σ aᵢ bᵢ`
    pub(super) dot: f64,
    /// `Σ aᵢ²`
    pub(super) left_squared: f64,
    /// `Σ bᵢ²`
    pub(super) right_squared: f64,
    /// The terms of SSD.
    pub(super) signs: SignSums,
}

/// `Σ |aᵢ + bᵢ| / (|aᵢ| + |bᵢ|)` over the pairs that are not both zero, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SignSums {
    pub(super) n: u64,
    pub(super) agreement: f64,
}

impl Sums {
    /// Sums over one run.
    pub(super) fn of(left: &[f64], right: &[f64]) -> Self {
        let mut lanes = [[0.0; LANES]; 5];
        let mut n_signs = [0u64; LANES];
        let mut add = |lane: usize, a: f64, b: f64| {
            lanes[0][lane] += (a - b) * (a - b);
            lanes[1][lane] += a * b;
            lanes[2][lane] += a * a;
            lanes[3][lane] += b * b;
            let (agreement, counts) = sign_agreement(a, b);
            lanes[4][lane] += agreement;
            n_signs[lane] += counts;
        };
        let (left_groups, left_rest) = left.as_chunks::<LANES>();
        let (right_groups, right_rest) = right.as_chunks::<LANES>();
        for (a, b) in left_groups.iter().zip(right_groups) {
            for lane in 0..LANES {
                add(lane, a[lane], b[lane]);
            }
        }
        for (lane, (&a, &b)) in left_rest.iter().zip(right_rest).enumerate() {
            add(lane, a, b);
        }
        let [apart, dot, left_squared, right_squared, agreement] =
            lanes.map(|lanes| lanes.iter().sum());
        Self {
            n: left.len() as u64,
            apart_squared: apart,
            dot,
            left_squared,
            right_squared,
            signs: SignSums {
                n: n_signs.iter().sum(),
                agreement,
            },
        }
    }

    /// Adds a later run or another tensor.
    pub(super) fn add(&mut self, later: &Self) {
        self.n += later.n;
        self.apart_squared += later.apart_squared;
        self.dot += later.dot;
        self.left_squared += later.left_squared;
        self.right_squared += later.right_squared;
        self.signs.add(later.signs);
    }

    /// The value of a metric; `None` where it is undefined, or for TSSD, which needs thresholds.
    pub(super) fn value(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::L2 => Some(self.apart_squared.sqrt()),
            Metric::Cosine => self.cosine(),
            Metric::Ssd => Some(self.signs.dissimilarity()),
            Metric::Tssd(_) => None,
        }
    }

    fn cosine(&self) -> Option<f64> {
        if self.left_squared == 0.0 || self.right_squared == 0.0 {
            return None;
        }
        let product = self.left_squared * self.right_squared;
        // One root is exact for equal vectors; two survive norms whose product does not fit.
        let norms = if product.is_normal() {
            product.sqrt()
        } else {
            self.left_squared.sqrt() * self.right_squared.sqrt()
        };
        Some(1.0 - (self.dot / norms).clamp(-1.0, 1.0))
    }
}

impl SignSums {
    /// Sums over one run of which only magnitudes from the thresholds on count.
    pub(super) fn truncated(left: &[f64], right: &[f64], thresholds: [f64; 2]) -> Self {
        let mut sums = Self::default();
        let truncate = |value: f64, threshold| if value.abs() >= threshold { value } else { 0.0 };
        for (&a, &b) in left.iter().zip(right) {
            let (agreement, counts) =
                sign_agreement(truncate(a, thresholds[0]), truncate(b, thresholds[1]));
            sums.agreement += agreement;
            sums.n += counts;
        }
        sums
    }

    pub(super) fn add(&mut self, later: Self) {
        self.n += later.n;
        self.agreement += later.agreement;
    }

    /// `1 − mean`, and 0 where no pair counts.
    pub(super) fn dissimilarity(&self) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        1.0 - self.agreement / self.n as f64
    }
}

/// The term of a pair in SSD, and whether it counts (1) or is zero on both sides (0).
#[inline]
fn sign_agreement(a: f64, b: f64) -> (f64, u64) {
    let size = a.abs() + b.abs();
    if size > 0.0 {
        ((a + b).abs() / size, 1)
    } else {
        (0.0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_pair_by_hand() {
        // a = (3, -1, 0, 2), b = (1, 1, 0, -2)
        let sums = Sums::of(&[3.0, -1.0, 0.0, 2.0], &[1.0, 1.0, 0.0, -2.0]);
        assert_eq!(sums.apart_squared, 4.0 + 4.0 + 0.0 + 16.0);
        assert_eq!(sums.dot, 3.0 - 1.0 - 4.0);
        assert_eq!((sums.left_squared, sums.right_squared), (14.0, 6.0));
        // terms: |4|/4, |0|/2, left out, |0|/4
        assert_eq!((sums.signs.agreement, sums.signs.n), (1.0, 3));
        assert_eq!(sums.value(Metric::L2), Some(24f64.sqrt()));
        assert_eq!(sums.value(Metric::Cosine), Some(1.0 + 2.0 / 84f64.sqrt()));
        assert_eq!(sums.value(Metric::Ssd), Some(1.0 - 1.0 / 3.0));
    }

    #[test]
    fn truncation_keeps_magnitudes_equal_to_the_threshold() {
        let sums = SignSums::truncated(&[3.0, -2.0, 1.0], &[-3.0, 1.0, 2.0], [2.0, 3.0]);
        // a = (3, -2, 0), b = (-3, 0, 0): terms 0 and 1, the last pair is left out.
        assert_eq!((sums.agreement, sums.n), (1.0, 2));
    }

    #[test]
    fn the_angle_to_a_zero_vector_is_undefined() {
        assert_eq!(
            Sums::of(&[0.0, 0.0], &[1.0, 2.0]).value(Metric::Cosine),
            None
        );
        assert_eq!(Sums::of(&[0.0], &[0.0]).value(Metric::Ssd), Some(0.0));
    }

    #[test]
    fn norms_beyond_the_range_of_their_product_still_have_an_angle() {
        let tiny = Sums::of(&[1e-120, 0.0], &[1e-120, 1e-120]);
        let angle = tiny.value(Metric::Cosine).expect("defined");
        assert!((angle - (1.0 - 0.5f64.sqrt())).abs() < 1e-15, "{angle}");
    }
}
