//! Correction of p-values for how many they are.
//!
//! Reference: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
//! pages 65 to 70, <https://www.jstor.org/stable/4615733>.

/// The p-values, corrected by Holm's procedure, in their own order: of the k-th smallest of m, `(m − k + 1) p`, at least
/// that of every smaller one and at most 1. Whoever calls those below α surprising errs with any of them in a share α of all
/// families of tests, however they depend on each other.
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&one, &other| p[one].total_cmp(&p[other]));
    let mut corrected = vec![1.0; p.len()];
    let mut least = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        least = least.max((p.len() - rank) as f64 * p[index]).min(1.0);
        corrected[index] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_p_counts_for_those_that_are_left() {
        // Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 are 0.02, 0.03, 0.06, 0.04, and the last is no less than the third.
        let found = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in found.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn equal_ones_stay_equal_and_none_exceeds_one() {
        assert_eq!(holm(&[0.5, 0.5, 0.5]), [1.0, 1.0, 1.0]);
        assert_eq!(holm(&[0.02, 0.02]), [0.04, 0.04]);
        assert_eq!(holm(&[0.3]), [0.3]);
        assert!(holm(&[]).is_empty());
    }
}
