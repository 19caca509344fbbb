//! Values that stand at given ranks among those of all tensors of a merge, exactly, in bounded memory: each pass over the
//! tensors counts by 16 more bits of the values.

use crate::Result;
use crate::methods::kernels::of_element::each;
use crate::methods::kernels::passes::{Count, tally};
use crate::methods::{Chunk, Groups, Real, Value};

/// Bits that a pass tells apart.
const BITS: u32 = 16;

/// Values that a pass tells apart.
const BINS: usize = 1 << BITS;

/// A wanted rank: the row of values, and the place from the smallest, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::methods) struct Rank {
    /// The row.
    pub row: usize,
    /// The place.
    pub place: u64,
}

/// The values at these ranks. `values` writes the value of each row for an element's differences from the base; rows
/// are as many as models.
pub(in crate::methods) fn at_ranks(
    groups: &dyn Groups,
    ranks: &[Rank],
    values: &(dyn Fn(&[f64], &mut [f64]) + Sync),
) -> Result<Vec<f64>> {
    let searches = ranks.iter().map(|rank| Search::at(rank.row, rank.place));
    let mut searches: Vec<Search> = searches.collect();
    for shift in Search::shifts() {
        let mut counts = vec![0u64; searches.len() * BINS];
        let histogram = Histogram {
            searches: &searches,
            shift,
            values,
        };
        groups.each(&mut |_, data| {
            let own = tally(data, 1, searches.len() * BINS, &histogram)?;
            for (count, own) in counts.iter_mut().zip(own) {
                *count += own;
            }
            Ok(())
        })?;
        for (search, counts) in searches.iter_mut().zip(counts.chunks(BINS)) {
            search.narrow(counts);
        }
    }
    Ok(searches
        .iter()
        .map(|search| value_of(search.prefix))
        .collect())
}

/// The known digits of the value at a rank.
pub(in crate::methods) struct Search {
    row: usize,
    /// Its place among the values that begin like it.
    place: u64,
    /// Its first bits.
    prefix: u64,
}

impl Search {
    /// Of a rank of which nothing is known yet.
    pub(in crate::methods) const fn at(row: usize, place: u64) -> Self {
        Self {
            row,
            place,
            prefix: 0,
        }
    }

    /// The shift of keys in each pass.
    pub(in crate::methods) fn shifts() -> impl Iterator<Item = u32> {
        (0..u64::BITS).step_by(BITS as usize).rev()
    }

    /// Counts of a pass, before it.
    pub(in crate::methods) fn no_counts() -> Vec<u64> {
        vec![0; BINS]
    }

    /// The count that a key adds to in the pass with this shift; `None` where it begins otherwise.
    #[inline(always)]
    pub(in crate::methods) fn bin(&self, key: u64, shift: u32) -> Option<usize> {
        let above = key.checked_shr(shift + BITS).unwrap_or(0);
        (above == self.prefix).then_some((key >> shift) as usize % BINS)
    }

    /// The key that was found, when all passes are done.
    pub(in crate::methods) const fn prefix(&self) -> u64 {
        self.prefix
    }

    /// Takes the next bits by the number of values with each.
    pub(in crate::methods) fn narrow(&mut self, counts: &[u64]) {
        let mut bin = 0;
        for (index, &count) in counts.iter().enumerate() {
            bin = index;
            if self.place < count {
                break;
            }
            // Beyond the last value, the last one stands.
            if index + 1 < counts.len() {
                self.place -= count;
            }
        }
        self.prefix = self.prefix << BITS | bin as u64;
    }
}

struct Histogram<'a> {
    searches: &'a [Search],
    shift: u32,
    values: &'a (dyn Fn(&[f64], &mut [f64]) + Sync),
}

impl Count for Histogram<'_> {
    fn count<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        counts: &mut [u64],
    ) {
        let mut values = vec![0.0; chunk.members.len()];
        each(chunk, |_, _, deltas| {
            (self.values)(deltas, &mut values);
            for (index, search) in self.searches.iter().enumerate() {
                if let Some(bin) = search.bin(key_of(values[search.row]), self.shift) {
                    counts[index * BINS + bin] += 1;
                }
            }
        });
    }
}

/// Bits in the order of the numbers; both zeros are one.
pub(in crate::methods) fn key_of(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    match bits >> 63 {
        0 => bits | 1 << 63,
        _ => !bits,
    }
}

/// The number of a key.
pub(in crate::methods) fn value_of(key: u64) -> f64 {
    f64::from_bits(match key >> 63 {
        0 => !key,
        _ => key & !(1 << 63),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_numbers_and_lead_back_to_them() {
        let numbers = [f64::MIN, -2.5, -1e-300, 0.0, 1e-310, 0.5, 0.75, f64::MAX];
        assert!(numbers.map(key_of).is_sorted());
        assert_eq!(numbers.map(|number| value_of(key_of(number))), numbers);
        assert_eq!(key_of(-0.0), key_of(0.0));
    }

    #[test]
    fn a_search_narrows_to_the_bin_of_its_place() {
        let mut search = Search::at(0, 4);
        let mut counts = vec![0; BINS];
        (counts[3], counts[9], counts[11]) = (3, 1, 2);
        search.narrow(&counts);
        assert_eq!((search.prefix, search.place), (11, 0));
    }
}
