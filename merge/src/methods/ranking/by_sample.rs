//! Finds the value of a given rank, and the places of its equals, in one pass over the tensor.
//!
//! A sample tells between which two values the one at a rank must lie, with a wide margin. One pass counts
//! what lies below and keeps, chunk by chunk, the few that lie between; the exact value is selected
//! among these. Where the sample was wrong, or too many lie between, the caller counts digit by digit.

use rayon::prelude::*;

use crate::Result;
use crate::methods::kernels::masks::{WORD, each_set, pack};
use crate::methods::kernels::passes::{Look, in_order, tally};
use crate::methods::ranking::by_count::{BLOCK, Found, Histogram, Measure, Rank, length};
use crate::methods::{Chunk, Passes, Real, Value};

/// The number of parts of a chunk, one of which is the sample.
const SAMPLE_PARTS: usize = 32;

/// Bits of a bin's number: exponent and seven bits of the mantissa.
const BIN_BITS: u32 = 15;

/// The inverse of the largest share of a chunk's elements that may lie between.
const MAX_SHARE: usize = 16;

/// The value at a rank, and how many values of each chunk are equal to it. Zeros are found, too, but
/// not placed: none of them is different from another.
pub(in crate::methods) struct Near {
    pub(in crate::methods) found: Found,
    pub(in crate::methods) in_chunks: Vec<u64>,
}

/// Most bytes that are kept for a rank of a tensor.
pub(in crate::methods) const fn kept_bytes(n_elements: usize) -> u64 {
    // All values between, and a copy to select in.
    (n_elements / MAX_SHARE * 8) as u64
}

/// Magnitudes between which a rank lies.
#[derive(Clone, Copy)]
struct Bracket {
    row: usize,
    low: u32,
    /// The last one.
    high: u32,
}

/// The values at these ranks; nothing where they must be counted.
pub(in crate::methods) fn find(
    data: &dyn Passes,
    measure: &impl Measure,
    ranks: &[Rank],
) -> Result<Option<Vec<Near>>> {
    if data.is_double() {
        return Ok(None);
    }
    let brackets = sample(data, measure, ranks)?;
    let look = Between {
        measure,
        brackets: &brackets,
    };
    let mut chunks = Vec::with_capacity(data.n_chunks());
    in_order(data, &look, |note| chunks.push(note))?;
    let near = ranks.par_iter().enumerate().map(|(index, rank)| {
        let parts: Option<Vec<&Part>> = chunks
            .iter()
            .map(|parts| parts.as_ref()?.get(index))
            .collect();
        select(rank.rank, &parts?)
    });
    Ok(near.collect())
}

/// The brackets of all ranks, by counting a sample.
fn sample(data: &dyn Passes, measure: &impl Measure, ranks: &[Rank]) -> Result<Vec<Bracket>> {
    let mut wanted: Vec<(usize, u64)> = ranks.iter().map(|rank| (rank.row, 0)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let histogram = Histogram {
        measure,
        wanted: &wanted,
        known: f32::MAGNITUDE_BITS,
        below: f32::MAGNITUDE_BITS - BIN_BITS,
    };
    let counts = tally(data, SAMPLE_PARTS, wanted.len() << BIN_BITS, &histogram)?;
    let n_elements = data.n_elements() as f64;
    Ok(ranks
        .iter()
        .map(|rank| {
            let place = wanted.iter().position(|&(row, _)| row == rank.row);
            let first = place.unwrap_or_default() << BIN_BITS;
            let counts = &counts[first..first + (1 << BIN_BITS)];
            bracket(rank.row, rank.rank as f64 / n_elements, counts)
        })
        .collect())
}

/// The bins between which a share of all values must lie, four standard errors and more to either side.
fn bracket(row: usize, share: f64, counts: &[u64]) -> Bracket {
    const BELOW: u32 = f32::MAGNITUDE_BITS - BIN_BITS;
    let n = counts.iter().sum::<u64>() as f64;
    let (middle, margin) = (share * n, 2.0 * n.sqrt() + 0.002 * n);
    let mut bracket = Bracket {
        row,
        low: 0,
        high: u32::MAX,
    };
    let mut sum = 0.0;
    for (bin, &count) in (0_u32..).zip(counts) {
        if sum <= middle - margin {
            bracket.low = bin << BELOW;
        }
        sum += count as f64;
        if sum > middle + margin {
            bracket.high = (bin << BELOW) | ((1 << BELOW) - 1);
            break;
        }
    }
    bracket
}

/// Counts what lies below the brackets, and keeps what lies between.
struct Between<'a, M> {
    measure: &'a M,
    brackets: &'a [Bracket],
}

/// The elements of a chunk in one bracket.
struct Part {
    zeros: u64,
    /// Above zero and below the bracket.
    below: u64,
    /// In order.
    between: Vec<u32>,
}

impl<M: Measure> Look for Between<'_, M> {
    /// Nothing where too many lie between.
    type Note = Option<Vec<Part>>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Self::Note {
        let n = length(chunk);
        let mut block = [T::ZERO; BLOCK];
        let mut words = [0; BLOCK / WORD];
        let parts = self.brackets.iter().map(|bracket| {
            let mut part = Part {
                zeros: 0,
                below: 0,
                between: Vec::new(),
            };
            let (low, high) = (u64::from(bracket.low.max(1)), u64::from(bracket.high));
            for first in (0..n).step_by(BLOCK) {
                let block = &mut block[..BLOCK.min(n - first)];
                self.measure.measure(bracket.row, chunk, first, block);
                let (zeros, not_above) = crate::vectorized(
                    #[inline(always)]
                    || {
                        pack(block, &mut words, |value: T| value.is_within(low, high));
                        let zeros = block.iter().map(|value| u32::from(value.is_within(0, 0)));
                        let zeros = zeros.sum::<u32>();
                        let below = block.iter();
                        let below = below.map(|value| u32::from(value.is_within(0, low - 1)));
                        (zeros, below.sum::<u32>())
                    },
                );
                part.zeros += u64::from(zeros);
                part.below += u64::from(not_above - zeros);
                each_set(&words[..block.len().div_ceil(WORD)], |place| {
                    part.between.push(block[place].magnitude() as u32);
                });
                if part.between.len() > n / MAX_SHARE {
                    return None;
                }
            }
            part.between.shrink_to_fit();
            Some(part)
        });
        parts.collect()
    }
}

/// The value at a rank; nothing where it does not lie between.
fn select(rank: u64, parts: &[&Part]) -> Option<Near> {
    let zeros: u64 = parts.iter().map(|part| part.zeros).sum();
    let below: u64 = parts.iter().map(|part| part.below).sum();
    if rank < zeros {
        let found = Found {
            key: 0,
            before: rank,
            equal: zeros,
        };
        return Some(Near {
            found,
            in_chunks: vec![0; parts.len()],
        });
    }
    let place = usize::try_from(rank.checked_sub(zeros + below)?).ok()?;
    let mut between: Vec<u32> = Vec::new();
    for part in parts {
        between.extend(&part.between);
    }
    if place >= between.len() {
        return None;
    }
    let (smaller, &mut key, larger) = between.select_nth_unstable(place);
    let equal_to = |values: &[u32]| values.iter().filter(|&&value| value == key).count() as u64;
    let before = equal_to(smaller);
    let found = Found {
        key: u64::from(key),
        before,
        equal: before + 1 + equal_to(larger),
    };
    let in_chunks = parts.iter().map(|part| equal_to(&part.between)).collect();
    Some(Near { found, in_chunks })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::methods::{AnyChunk, widen};
    use crate::random::Draws;

    const CHUNK: usize = 1 << 16;

    /// One tensor, in chunks.
    struct Values(Vec<f32>);

    impl Passes for Values {
        fn n_chunks(&self) -> usize {
            self.0.len().div_ceil(CHUNK)
        }

        fn chunk_elements(&self) -> usize {
            CHUNK
        }

        fn n_elements(&self) -> usize {
            self.0.len()
        }

        fn is_double(&self) -> bool {
            false
        }

        fn visit(
            &self,
            chunks: Range<usize>,
            parts: usize,
            see: &(dyn Fn(usize, &AnyChunk<'_>) + Sync),
        ) -> Result<()> {
            for index in chunks {
                let first = index * CHUNK;
                let values = &self.0[first..(first + CHUNK).min(self.0.len())];
                let part = &values[..values.len().min(CHUNK / parts)];
                let chunk = Chunk {
                    members: &[part],
                    base: None,
                    paired: &[],
                    first,
                };
                see(index, &AnyChunk::F32(chunk));
            }
            Ok(())
        }
    }

    struct Itself;

    impl Measure for Itself {
        fn measure<T: Real, V: Value<Real = T>>(
            &self,
            row: usize,
            chunk: &Chunk<'_, V>,
            first: usize,
            out: &mut [T],
        ) {
            widen(&chunk.members[row][first..first + out.len()], out);
        }
    }

    fn draws() -> Vec<f32> {
        let mut values = vec![0.0; 20 * CHUNK + 77];
        Draws::new(1, "near").add_normal(1.0, 0, &mut values);
        values
    }

    #[test]
    fn ranks_are_those_of_a_sort_and_equals_are_counted_in_their_chunks() {
        let fine = draws();
        // Four decimal places, so that some values are equal; and a third of zeros.
        let coarse: Vec<f32> = fine.iter().map(|x| (x * 1e4).round() / 1e4).collect();
        let mut sparse = coarse.clone();
        sparse.iter_mut().step_by(3).for_each(|value| *value = 0.0);
        for values in [fine, coarse, sparse] {
            let mut keys: Vec<u64> = values.iter().map(|value| value.magnitude()).collect();
            keys.sort_unstable();
            let last = keys.len() as u64 - 1;
            let ranks = [0, 1, last / 10, last / 2, last * 9 / 10, last];
            let ranks = ranks.map(|rank| Rank { row: 0, rank });
            let data = Values(values);
            let found = find(&data, &Itself, &ranks).expect("there are values");
            for (near, rank) in found
                .expect("nothing lies out of the brackets")
                .iter()
                .zip(ranks)
            {
                let key = keys[rank.rank as usize];
                let first = keys.partition_point(|&other| other < key) as u64;
                let end = keys.partition_point(|&other| other <= key) as u64;
                let expected = Found {
                    key,
                    before: rank.rank - first,
                    equal: end - first,
                };
                assert_eq!(near.found, expected);
                if key > 0 {
                    let equal = |chunk: &[f32]| {
                        chunk.iter().filter(|x| x.magnitude() == key).count() as u64
                    };
                    let in_chunks: Vec<u64> = data.0.chunks(CHUNK).map(equal).collect();
                    assert_eq!(near.in_chunks, in_chunks);
                }
            }
        }
    }

    #[test]
    fn too_many_between_and_a_sample_that_misleads_are_left_to_the_count() {
        let rank = [Rank {
            row: 0,
            rank: 700_000,
        }];
        let same = Values(vec![1.0; 20 * CHUNK]);
        assert!(
            find(&same, &Itself, &rank)
                .expect("there are values")
                .is_none()
        );
        // Small only where the sample looks.
        let mut values = draws();
        for chunk in values.chunks_mut(CHUNK) {
            let n = chunk.len().min(CHUNK / SAMPLE_PARTS);
            chunk[..n].iter_mut().for_each(|value| *value *= 1e-3);
        }
        let misleading = Values(values);
        assert!(
            find(&misleading, &Itself, &rank)
                .expect("there are values")
                .is_none()
        );
    }
}
