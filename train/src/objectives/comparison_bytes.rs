//! The memory that a comparison takes.

use super::comparison::stretches;

/// Tensors of a stretch of rows that are in memory at once while gradients are computed.
const STRETCHES_AT_ONCE: u64 = 6;

/// Sides of a branch that are in memory at once: images and texts, the gradients of both, and one more
/// while parts are joined.
const SIDES_AT_ONCE: u64 = 5;

/// Bytes that comparing features takes at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComparisonBytes {
    /// Features and their gradients, which grow with the batch.
    pub features: u64,
    /// Similarities of the rows that are compared at once: from 1,024 rows on they grow no further.
    pub similarities: u64,
}

impl ComparisonBytes {
    /// For `n_branches` branches of features of `width` numbers, of `n_rows` rows of this rank, compared with
    /// those of `n_ranks` ranks.
    #[must_use]
    pub fn of(n_branches: usize, width: usize, n_rows: usize, n_ranks: usize) -> Self {
        let n_candidates = n_rows * n_ranks;
        let side = |rows: usize| 4 * rows as u64 * width as u64;
        let Some((_, n_at_once)) = stretches(n_rows, n_candidates).next() else {
            return Self::default();
        };
        if n_branches == 0 {
            return Self::default();
        }
        // Of one branch after the other.
        let of_all_ranks = match n_ranks {
            1 => 0,
            _ => 2 * side(n_candidates),
        };
        Self {
            features: n_branches as u64 * SIDES_AT_ONCE * side(n_rows) + of_all_ranks,
            similarities: 4 * STRETCHES_AT_ONCE * n_at_once as u64 * n_candidates as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_16384_takes_what_one_of_1024_takes_but_for_its_features() {
        let [small, large] = [1024, 16384].map(|n| ComparisonBytes::of(1, 512, n, 1));
        assert_eq!(small.similarities, large.similarities);
        assert_eq!(small.similarities, 6 * 4 * 1024 * 1024);
        // Five tensors of 1,024 and of 16,384 rows of 512 numbers of 4 bytes.
        assert_eq!(small.features, 5 * 2 * 1024 * 1024);
        assert_eq!(large.features, 16 * small.features);
    }

    #[test]
    fn ranks_share_rows_and_each_holds_the_features_of_all() {
        let alone = ComparisonBytes::of(1, 8, 64, 1);
        let one_of_four = ComparisonBytes::of(1, 8, 16, 4);
        assert_eq!(4 * one_of_four.similarities, alone.similarities);
        let own = 5 * 4 * 16 * 8;
        assert_eq!(one_of_four.features, own + 2 * 4 * 64 * 8);
    }

    #[test]
    fn what_contrasts_nothing_takes_nothing() {
        let nothing = ComparisonBytes::default();
        assert_eq!(ComparisonBytes::of(0, 512, 1024, 1), nothing);
        assert_eq!(ComparisonBytes::of(1, 512, 0, 1), nothing);
    }
}
