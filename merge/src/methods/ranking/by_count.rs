//! Finds the value of a given rank by counting instead of sorting.
//!
//! The bits of a float without its sign are ordered like its magnitude. A count of their upper bits
//! tells which bin holds the rank; a count of the next 16 bits within that bin, and so on, ends at
//! one value. Which of several equal values are taken is decided by their order in the tensor.

use crate::Result;
use crate::methods::kernels::masks::{WORD, each_set, pack};
use crate::methods::kernels::passes::{Count, Look, notes, tally};
use crate::methods::{Chunk, Passes, Real, Value};

/// Bits that one count tells apart.
const DIGIT_BITS: u32 = 16;

/// Elements that are looked at together, in a buffer on the stack.
pub(in crate::methods) const BLOCK: usize = 1024;

/// The ranked values: one number per element, of which the magnitude counts.
pub(in crate::methods) trait Measure: Sync {
    /// Writes the numbers of elements `first..first + out.len()` of a chunk, in row `row` of several.
    fn measure<T: Real, V: Value<Real = T>>(
        &self,
        row: usize,
        chunk: &Chunk<'_, V>,
        first: usize,
        out: &mut [T],
    );
}

/// A rank that is looked for: the `rank`-th smallest magnitude of a row, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::methods) struct Rank {
    /// The row.
    pub(in crate::methods) row: usize,
    /// The rank.
    pub(in crate::methods) rank: u64,
}

/// The value at a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::methods) struct Found {
    /// Its magnitude's bits.
    pub(in crate::methods) key: u64,
    /// The number of the row's values that are equal to it and of a lower rank.
    pub(in crate::methods) before: u64,
    /// The number of the row's values that are equal to it.
    pub(in crate::methods) equal: u64,
}

/// A search under way.
struct Search {
    rank: Rank,
    /// The upper bits that are known.
    prefix: u64,
    /// The rank among the values with these upper bits.
    left: u64,
    equal: u64,
}

/// Finds the values at these ranks, in as many passes as their type has digits.
pub(in crate::methods) fn find(
    data: &dyn Passes,
    measure: &impl Measure,
    ranks: &[Rank],
) -> Result<Vec<Found>> {
    let bits = match data.is_double() {
        true => f64::MAGNITUDE_BITS,
        false => f32::MAGNITUDE_BITS,
    };
    let mut searches: Vec<Search> = ranks
        .iter()
        .map(|&rank| Search {
            rank,
            prefix: 0,
            left: rank.rank,
            equal: 0,
        })
        .collect();
    // The first digit has the rest of the bits: 15 for either type.
    let mut below = bits - (bits - 1) % DIGIT_BITS - 1;
    let mut known = bits;
    loop {
        let digit = known - below;
        let wanted: Vec<(usize, u64)> = distinct(&searches);
        let histogram = Histogram {
            measure,
            wanted: &wanted,
            known,
            below,
        };
        let counts = tally(data, 1, wanted.len() << digit, &histogram)?;
        for search in &mut searches {
            let place = wanted
                .iter()
                .position(|&(row, prefix)| row == search.rank.row && prefix == search.prefix);
            let first = place.unwrap_or_default() << digit;
            let counts = &counts[first..first + (1 << digit)];
            let mut bin = 0;
            while bin + 1 < counts.len() && search.left >= counts[bin] {
                search.left -= counts[bin];
                bin += 1;
            }
            search.equal = counts[bin];
            search.prefix = search.prefix << digit | bin as u64;
        }
        if below == 0 {
            break;
        }
        known = below;
        below = known.saturating_sub(DIGIT_BITS);
    }
    Ok(searches
        .iter()
        .map(|search| Found {
            key: search.prefix,
            before: search.left,
            equal: search.equal,
        })
        .collect())
}

/// Rows and upper bits that need a count of their own.
fn distinct(searches: &[Search]) -> Vec<(usize, u64)> {
    let mut wanted: Vec<(usize, u64)> = searches
        .iter()
        .map(|search| (search.rank.row, search.prefix))
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Counts of one digit, for each wanted row and prefix.
pub(in crate::methods) struct Histogram<'a, M> {
    pub(in crate::methods) measure: &'a M,
    pub(in crate::methods) wanted: &'a [(usize, u64)],
    /// Bits below the prefix.
    pub(in crate::methods) known: u32,
    /// Bits below the digit.
    pub(in crate::methods) below: u32,
}

impl<M: Measure> Count for Histogram<'_, M> {
    fn count<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        counts: &mut [u64],
    ) {
        let digit = self.known - self.below;
        let mask = (1_u64 << digit) - 1;
        let n = length(chunk);
        let mut block = [T::ZERO; BLOCK];
        let mut row_done = None;
        for (place, &(row, prefix)) in self.wanted.iter().enumerate() {
            let others: Vec<(usize, u64)> = (self.wanted.iter().enumerate())
                .filter(|(_, (other, _))| *other == row)
                .map(|(place, &(_, prefix))| (place, prefix))
                .collect();
            if row_done == Some(row) {
                continue;
            }
            row_done = Some(row);
            let first_counts = place << digit;
            for first in (0..n).step_by(BLOCK) {
                let block = &mut block[..BLOCK.min(n - first)];
                self.measure.measure(row, chunk, first, block);
                if let [_] = others.as_slice() {
                    let counts = &mut counts[first_counts..first_counts + (1 << digit)];
                    for value in &*block {
                        let key = value.magnitude();
                        if key >> self.known == prefix {
                            counts[(key >> self.below & mask) as usize] += 1;
                        }
                    }
                } else {
                    for value in &*block {
                        let key = value.magnitude();
                        for &(place, prefix) in &others {
                            if key >> self.known == prefix {
                                counts[(place << digit) + (key >> self.below & mask) as usize] += 1;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Elements of a chunk.
pub(in crate::methods) fn length<T>(chunk: &Chunk<'_, T>) -> usize {
    let any = chunk.members.first().copied().or(chunk.base);
    any.map_or(0, <[T]>::len)
}

/// Magnitudes that stay: those strictly between two values, and of those equal to either the ones
/// that come at certain places in the row.
#[derive(Clone, Debug, Default)]
pub(in crate::methods) struct Window {
    /// Nothing below this stays; of the values equal to it, those counted `low_from..low_to` do.
    pub(in crate::methods) low: u64,
    pub(in crate::methods) low_from: u64,
    pub(in crate::methods) low_to: u64,
    /// Nothing above this stays; of the values equal to it, the first `high_to` do.
    pub(in crate::methods) high: u64,
    pub(in crate::methods) high_to: u64,
    /// For each chunk, how many values before it are equal to `low` and to `high`.
    pub(in crate::methods) before: Vec<(u64, u64)>,
}

impl Window {
    /// The `count` largest, and among equals the first.
    /// `found` is the smallest of them.
    pub(in crate::methods) fn largest(found: Found, count: u64) -> Self {
        Self {
            low: found.key,
            low_from: 0,
            low_to: (found.equal - found.before).min(count),
            high: u64::MAX,
            high_to: 0,
            before: Vec::new(),
        }
    }

    /// The values from one rank to another, both included, and among equals in their order.
    pub(in crate::methods) fn between(first: Found, last: Found) -> Self {
        let is_one = first.key == last.key;
        Self {
            low: first.key,
            low_from: first.before,
            low_to: if is_one { last.before + 1 } else { u64::MAX },
            high: last.key,
            high_to: if is_one { 0 } else { last.before + 1 },
            before: Vec::new(),
        }
    }

    /// Whether the places of equal values matter.
    fn is_split(&self, low_equal: u64, high_equal: u64) -> bool {
        let low_all = self.low_from == 0 && self.low_to >= low_equal;
        let high_all = self.high == u64::MAX || self.low == self.high || self.high_to >= high_equal;
        !(low_all && high_all)
    }

    /// Sets to zero what does not stay, of elements `first..` of chunk `index`; `seen` are the equal
    /// values of this chunk before `first`, and is moved on.
    pub(in crate::methods) fn apply<T: Real>(
        &self,
        index: usize,
        seen: &mut (u64, u64),
        values: &mut [T],
    ) {
        if self.before.is_empty() {
            // Either all equal values stay, or none of those equal to the lower bound.
            let with_low = self.low_to > self.low_from;
            let lowest = if with_low {
                self.low
            } else {
                self.low.saturating_add(1)
            };
            let highest = self.high;
            crate::vectorized(
                #[inline(always)]
                || {
                    for value in values.iter_mut() {
                        *value =
                            value.and(u32::from(value.is_within(lowest, highest)).wrapping_neg());
                    }
                },
            );
            return;
        }
        // Those strictly between stay, and for now all that are equal to an end.
        let before = self.before.get(index).copied().unwrap_or_default();
        let mut equal = [0; BLOCK / WORD];
        for block in values.chunks_mut(BLOCK) {
            crate::vectorized(
                #[inline(always)]
                || {
                    pack(block, &mut equal, |value: T| {
                        value.is_within(self.low, self.low) | value.is_within(self.high, self.high)
                    });
                    for value in block.iter_mut() {
                        *value = value
                            .and(u32::from(value.is_within(self.low, self.high)).wrapping_neg());
                    }
                },
            );
            each_set(&equal[..block.len().div_ceil(WORD)], |place| {
                let stays = if block[place].magnitude() == self.low {
                    seen.0 += 1;
                    (self.low_from..self.low_to).contains(&(before.0 + seen.0 - 1))
                } else {
                    seen.1 += 1;
                    before.1 + seen.1 - 1 < self.high_to
                };
                if !stays {
                    block[place] = T::ZERO;
                }
            });
        }
    }

    /// Notes where equal values stand if that matters: for each chunk how many in it are equal to
    /// `first` and to `last`, the values at the window's ends.
    pub(in crate::methods) fn place_equals(
        &mut self,
        first: Found,
        last: Found,
        low_in_chunks: &[u64],
        high_in_chunks: &[u64],
    ) {
        if !self.is_split(first.equal, last.equal) {
            return;
        }
        let mut so_far = (0, 0);
        for (low, high) in low_in_chunks.iter().zip(high_in_chunks) {
            self.before.push(so_far);
            so_far.0 += low;
            so_far.1 += high;
        }
    }
}

/// A window of a row under construction: with the number of values that are equal to its ends.
pub(in crate::methods) struct Draft {
    pub(in crate::methods) row: usize,
    pub(in crate::methods) window: Window,
    pub(in crate::methods) low_equal: u64,
    pub(in crate::methods) high_equal: u64,
}

/// Looks where equal values stand, for those windows that take only some of them.
pub(in crate::methods) fn place_equals(
    data: &dyn Passes,
    measure: &impl Measure,
    drafts: &mut [Draft],
) -> Result<()> {
    let split: Vec<usize> = (0..drafts.len())
        .filter(|&index| {
            let draft = &drafts[index];
            draft.window.is_split(draft.low_equal, draft.high_equal)
        })
        .collect();
    if split.is_empty() {
        return Ok(());
    }
    let ends: Vec<(usize, u64, u64)> = split
        .iter()
        .map(|&index| {
            let draft = &drafts[index];
            (draft.row, draft.window.low, draft.window.high)
        })
        .collect();
    let look = Equals {
        measure,
        ends: &ends,
    };
    let mut so_far = vec![(0, 0); split.len()];
    for note in notes(data, &look)? {
        for ((place, &index), (low, high)) in split.iter().enumerate().zip(note) {
            drafts[index].window.before.push(so_far[place]);
            so_far[place].0 += low;
            so_far[place].1 += high;
        }
    }
    Ok(())
}

struct Equals<'a, M> {
    measure: &'a M,
    ends: &'a [(usize, u64, u64)],
}

impl<M: Measure> Look for Equals<'_, M> {
    type Note = Vec<(u64, u64)>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Self::Note {
        let n = length(chunk);
        let mut block = [T::ZERO; BLOCK];
        let ends = self.ends.iter();
        ends.map(|&(row, low, high)| {
            let mut equal = (0, 0);
            for first in (0..n).step_by(BLOCK) {
                let block = &mut block[..BLOCK.min(n - first)];
                self.measure.measure(row, chunk, first, block);
                for value in &*block {
                    let key = value.magnitude();
                    equal.0 += u64::from(key == low);
                    equal.1 += u64::from(key == high && key != low);
                }
            }
            equal
        })
        .collect()
    }
}
