//! Which rank holds which experts of a mixture.

use std::ops::Range;

use super::Collective;

/// A rank's share of the experts of every mixture: each rank holds a stretch of them, of lengths that differ by one at
/// most. The first rank never holds fewer than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShare {
    rank: usize,
    n_ranks: usize,
}

impl ExpertShare {
    /// All experts, in one process.
    pub const ALL: Self = Self {
        rank: 0,
        n_ranks: 1,
    };

    /// That of this process among `ranks`.
    #[must_use]
    pub fn of(ranks: &dyn Collective) -> Self {
        Self {
            rank: ranks.rank(),
            n_ranks: ranks.size().max(1),
        }
    }

    /// Whether it is all experts.
    #[must_use]
    pub fn is_all(self) -> bool {
        self.n_ranks == 1
    }

    /// The rank that holds an expert of `n_experts`.
    #[must_use]
    pub fn owner(self, expert: usize, n_experts: usize) -> usize {
        expert * self.n_ranks / n_experts.max(1)
    }

    /// The numbers of those of `n_experts` that this rank holds.
    #[must_use]
    pub fn own(self, n_experts: usize) -> Range<usize> {
        let start = |rank: usize| (rank * n_experts).div_ceil(self.n_ranks);
        start(self.rank)..start(self.rank + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expert_has_one_rank_and_no_rank_two_more_than_another() {
        for n_ranks in 1..9 {
            for n_experts in [0, 1, 2, 5, 8, 32] {
                let mut end = 0;
                let mut sizes = Vec::new();
                for rank in 0..n_ranks {
                    let share = ExpertShare { rank, n_ranks };
                    let own = share.own(n_experts);
                    assert_eq!(own.start, end, "stretches follow one another");
                    end = own.end;
                    sizes.push(own.len());
                    assert!(own.into_iter().all(|of| share.owner(of, n_experts) == rank));
                }
                assert_eq!(end, n_experts);
                let (least, most) = (sizes.iter().min(), sizes.iter().max());
                assert!(
                    most.expect("a rank") - least.expect("a rank") <= 1,
                    "{sizes:?}"
                );
                assert_eq!(most, sizes.first(), "nobody holds more than the first rank");
            }
        }
    }
}
