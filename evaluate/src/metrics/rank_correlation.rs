//! How far two orders of the same things agree.
//!
//! References: Spearman 1904, "The proof and measurement of association between two things", American Journal of Psychology 15,
//! <https://doi.org/10.2307/1412159>; Kendall 1945, "The treatment of ties in ranking problems", Biometrika 33,
//! <https://doi.org/10.1093/biomet/33.3.239>.

/// The rank of each value, from 1 for the largest. Equal values share the mean of their ranks.
#[must_use]
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |own: &f64| {
        let n_above = values.iter().filter(|value| *value > own).count();
        let n_equal = values.iter().filter(|value| *value == own).count();
        n_above as f64 + (n_equal as f64 + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

/// Spearman's ρ of pairs of values: Pearson's correlation of their ranks, from −1 for opposite orders to 1 for the same order.
/// Without ties this is `1 − 6 Σ d² / (n (n² − 1))` for differences `d` of ranks.
///
/// `None` if one side has no order: fewer than two pairs, equal values alone, or a value that is not finite.
#[must_use]
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let (one, other) = sides(pairs)?;
    let middle = (pairs.len() as f64 + 1.0) / 2.0;
    let (mut both, mut squares) = (0.0, [0.0; 2]);
    for (one, other) in ranks(&one).into_iter().zip(ranks(&other)) {
        let (one, other) = (one - middle, other - middle);
        both += one * other;
        squares[0] += one * one;
        squares[1] += other * other;
    }
    let scale = squares[0] * squares[1];
    (scale > 0.0).then(|| both / scale.sqrt())
}

/// Kendall's τ_b of pairs of values: of all two things, those in the same order less those in opposite order, over the geometric
/// mean of how many are in any order on either side.
///
/// `None` where [`spearman`] is.
#[must_use]
pub fn kendall(pairs: &[(f64, f64)]) -> Option<f64> {
    sides(pairs)?;
    let (mut both, mut ordered) = (0.0, [0.0; 2]);
    for (at, first) in pairs.iter().enumerate() {
        for second in &pairs[at + 1..] {
            let (one, other) = (order(first.0, second.0), order(first.1, second.1));
            both += one * other;
            ordered[0] += one.abs();
            ordered[1] += other.abs();
        }
    }
    let scale: f64 = ordered[0] * ordered[1];
    (scale > 0.0).then(|| both / scale.sqrt())
}

/// With more pairs than this, [`p_of_spearman`] would take too long.
const MOST_PAIRS: usize = 9;

/// How likely a Spearman's ρ this far from 0, either way, is where order has no part: the share of all orders of one side that
/// give one (the exact permutation test).
///
/// `None` where [`spearman`] is, and for more than nine pairs.
#[must_use]
pub fn p_of_spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    // Orders of the same values differ by how a sum was rounded.
    const ROUNDING: f64 = 1e-9;
    let own = spearman(pairs).filter(|_| pairs.len() <= MOST_PAIRS)?.abs();
    let (one, mut other) = sides(pairs)?;
    let (mut n_orders, mut n_as_far) = (0_u64, 0_u64);
    let mut count = |other: &[f64]| {
        let pairs: Vec<(f64, f64)> = one.iter().copied().zip(other.iter().copied()).collect();
        n_orders += 1;
        n_as_far += u64::from(spearman(&pairs).is_some_and(|rho| rho.abs() >= own - ROUNDING));
    };
    // Heap's algorithm: each order differs from the one before by one exchange.
    let mut turns = vec![0; other.len()];
    count(&other);
    let mut at = 1;
    while at < other.len() {
        if turns[at] < at {
            let with = if at.is_multiple_of(2) { 0 } else { turns[at] };
            other.swap(with, at);
            count(&other);
            turns[at] += 1;
            at = 1;
        } else {
            turns[at] = 0;
            at += 1;
        }
    }
    Some(n_as_far as f64 / n_orders as f64)
}

/// 1, 0 or −1: whether the first is larger.
fn order(first: f64, second: f64) -> f64 {
    f64::from(i8::from(first > second) - i8::from(first < second))
}

/// Both sides, if all values are finite.
fn sides(pairs: &[(f64, f64)]) -> Option<(Vec<f64>, Vec<f64>)> {
    let is_finite = |(one, other): &(f64, f64)| one.is_finite() && other.is_finite();
    pairs
        .iter()
        .all(is_finite)
        .then(|| pairs.iter().copied().unzip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("defined");
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn equal_values_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[0.2, 0.9, 0.2, 0.5]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(ranks(&[7.0, 7.0, 7.0]), [2.0, 2.0, 2.0]);
        assert!(ranks(&[]).is_empty());
    }

    #[test]
    fn one_order_is_one_and_the_opposite_is_minus_one_whatever_the_distances() {
        let same = [(1.0, -3.0), (2.0, 0.1), (100.0, 0.2)];
        let opposite = same.map(|(one, other)| (one, -other));
        for correlation in [spearman, kendall] {
            close(correlation(&same), 1.0);
            close(correlation(&opposite), -1.0);
        }
    }

    #[test]
    fn without_ties_both_follow_their_closed_forms() {
        // Ranks 1 2 3 4 5 and 2 1 4 3 5: Σ d² = 4, so 1 − 24 / 120; two of ten pairs are turned, so (8 − 2) / 10.
        let pairs = [
            (5.0, 40.0),
            (4.0, 50.0),
            (3.0, 20.0),
            (2.0, 30.0),
            (1.0, 10.0),
        ];
        close(spearman(&pairs), 0.8);
        close(kendall(&pairs), 0.6);
    }

    #[test]
    fn with_ties_spearman_is_of_mean_ranks_and_kendall_counts_what_is_in_order() {
        // Ranks 1 2.5 2.5 4 and 1 2 3 4 around 2.5: (2.25 + 2.25) / √(4.5 · 5). Of six pairs five are in order on the left.
        let pairs = [(9.0, 9.0), (5.0, 8.0), (5.0, 7.0), (1.0, 6.0)];
        close(spearman(&pairs), 4.5 / 22.5_f64.sqrt());
        close(kendall(&pairs), 5.0 / 30.0_f64.sqrt());
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        for correlation in [spearman, kendall] {
            assert_eq!(correlation(&[]), None);
            assert_eq!(correlation(&[(1.0, 2.0)]), None);
            assert_eq!(correlation(&[(1.0, 2.0), (1.0, 3.0)]), None);
            assert_eq!(correlation(&[(1.0, 2.0), (f64::NAN, 3.0)]), None);
        }
    }

    #[test]
    fn of_all_orders_two_are_as_far_as_a_perfect_one() {
        let pairs = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0)];
        close(p_of_spearman(&pairs), 2.0 / 24.0);
        // ρ = 0.8: of the 24 orders 1 gives 1, 3 give 0.8, and as many the opposite.
        let pairs = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)];
        close(p_of_spearman(&pairs), 8.0 / 24.0);
        assert_eq!(p_of_spearman(&[(1.0, 2.0); 3]), None);
        let many: Vec<(f64, f64)> = (0..10_u8).map(|i| (f64::from(i), f64::from(i))).collect();
        assert_eq!(p_of_spearman(&many), None);
    }
}
