//! The m-th largest magnitude of any number of elements, exactly, in bounded memory.
//!
//! The bits of a non-negative `f64`, read as an integer, have the order of the numbers. So a
//! histogram over the leading bits tells in which bin the wanted magnitude lies; the elements of
//! that bin are gathered and selected from, or counted again by their next bits if they are many.

/// Bits that one histogram tells apart.
const DIGIT_BITS: u32 = 16;

/// Elements of a bin that are gathered instead of counted again: 4 MiB.
const GATHER_LIMIT: u64 = 512 * 1024;

/// The search for one magnitude, narrowed down pass by pass.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// The leading bits that are known.
    prefix: u64,
    /// The number of bits that are not known yet.
    unknown_bits: u32,
    /// Elements with this prefix.
    n: u64,
    /// The rank of the sought element, 1 for the largest.
    rank: u64,
    gather_limit: u64,
    found: Option<f64>,
}

/// The counts of one thread in one pass.
pub(super) enum Tally {
    /// Nothing is sought any more.
    Done,
    /// The number of elements with each next digit.
    Histogram(Vec<u64>),
    /// The bits of all elements with the prefix.
    Gathered(Vec<u64>),
}

impl Selection {
    /// Seeks the `rank`-th largest (from 1) of `n` magnitudes.
    pub(super) fn new(n: u64, rank: u64) -> Self {
        Self {
            prefix: 0,
            unknown_bits: u64::BITS,
            n,
            rank,
            gather_limit: GATHER_LIMIT,
            // All elements of an empty set may be kept.
            found: (rank == 0).then_some(0.0),
        }
    }

    /// The magnitude, once it is known.
    pub(super) fn found(&self) -> Option<f64> {
        self.found
    }

    /// An empty tally for the next pass.
    pub(super) fn tally(&self) -> Tally {
        if self.found.is_some() {
            Tally::Done
        } else if self.n <= self.gather_limit {
            Tally::Gathered(Vec::new())
        } else {
            Tally::Histogram(vec![0; 1 << DIGIT_BITS])
        }
    }

    /// Takes note of a run of elements.
    pub(super) fn add(&self, tally: &mut Tally, values: &[f64]) {
        let bits = values.iter().map(|value| value.abs().to_bits());
        let matching = bits.filter(|&bits| self.matches(bits));
        match tally {
            Tally::Done => {}
            Tally::Histogram(counts) => {
                let shift = self.unknown_bits - DIGIT_BITS;
                matching.for_each(|bits| counts[usize::from((bits >> shift) as u16)] += 1);
            }
            Tally::Gathered(gathered) => gathered.extend(matching),
        }
    }

    fn matches(&self, bits: u64) -> bool {
        bits.checked_shr(self.unknown_bits).unwrap_or(0) == self.prefix
    }

    /// Narrows the search down by all tallies of a pass over all elements.
    pub(super) fn narrow(&mut self, tallies: impl IntoIterator<Item = Tally>) {
        let joined = tallies.into_iter().reduce(Tally::join);
        match joined {
            None | Some(Tally::Done) => {}
            Some(Tally::Histogram(counts)) => {
                let mut above = 0;
                let bin = counts.iter().enumerate().rev().find(|&(_, n)| {
                    above += n;
                    self.rank <= above
                });
                // The last bin is for elements that have vanished from the file since.
                let (digit, &n) = bin.unwrap_or((0, &counts[0]));
                self.rank = self.rank.saturating_sub(above - n).max(1);
                self.prefix = (self.prefix << DIGIT_BITS) | digit as u64;
                self.unknown_bits -= DIGIT_BITS;
                self.n = n;
                if self.unknown_bits == 0 {
                    self.found = Some(f64::from_bits(self.prefix));
                }
            }
            Some(Tally::Gathered(mut bits)) => {
                let from_the_bottom = bits.len().saturating_sub(self.rank as usize);
                self.found = Some(if bits.is_empty() {
                    0.0
                } else {
                    f64::from_bits(*bits.select_nth_unstable(from_the_bottom).1)
                });
            }
        }
    }
}

impl Tally {
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Histogram(mut counts), Self::Histogram(more)) => {
                counts.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
                Self::Histogram(counts)
            }
            (Self::Gathered(mut bits), Self::Gathered(more)) => {
                bits.extend(more);
                Self::Gathered(bits)
            }
            (joined, _) => joined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(values: &[f64], rank: u64, gather_limit: u64, pieces: usize) -> f64 {
        let mut selection = Selection {
            gather_limit,
            ..Selection::new(values.len() as u64, rank)
        };
        for _ in 0..5 {
            let tallies: Vec<Tally> = values
                .chunks(values.len().div_ceil(pieces))
                .map(|piece| {
                    let mut tally = selection.tally();
                    selection.add(&mut tally, piece);
                    tally
                })
                .collect();
            selection.narrow(tallies);
            if let Some(found) = selection.found() {
                return found;
            }
        }
        panic!("64 bits are known after four histograms");
    }

    proptest! {
        #[test]
        fn the_selected_magnitude_is_the_one_that_sorting_finds(
            values in proptest::collection::vec(
                prop_oneof![
                    -1.0f64..1.0,
                    Just(0.0),
                    Just(-0.25),
                    Just(0.25),
                    (-1e-3f64..1e-3).prop_map(|x| f64::from(x as f32)),
                    proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL,
                ],
                1..200,
            ),
            share in 0.0f64..1.0,
            gather_limit in 0u64..40,
            pieces in 1usize..5,
        ) {
            let rank = 1 + (share * (values.len() - 1) as f64) as u64;
            let mut sorted: Vec<f64> = values.iter().map(|value| value.abs()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let found = select(&values, rank, gather_limit, pieces);
            prop_assert_eq!(found, sorted[rank as usize - 1]);
        }
    }

    #[test]
    fn many_equal_magnitudes_are_told_by_their_bits_alone() {
        let values = [0.1, -0.1, 0.1, 0.1, 0.2];
        assert_eq!(select(&values, 2, 0, 1), 0.1);
        assert_eq!(select(&values, 1, 0, 2), 0.2);
    }
}
