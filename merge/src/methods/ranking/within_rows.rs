//! Chances that grow with the rank of a magnitude in its row.
//!
//! An element stays when its draw is below the chance of its rank. Few ranks must be known for that: a
//! count of the magnitudes' upper bits tells between which ranks an element stands, and nearly always
//! its draw is below the chances of both or of neither. The others are ranked in their row.

use crate::methods::Real;
use crate::methods::kernels::masks::{WORD, pack};
use crate::methods::thinning::sparsifier::Row;

/// Counters of a row: sixteen powers of two, of 64 steps each; smaller values are counted together.
const BINS: usize = 1024;

/// Bits of a mantissa that tell bins apart.
const STEP_BITS: u32 = 6;

/// The most elements of a row that are ranked one by one; where there are more the row is sorted, which takes
/// as long.
const MAX_RANKED: usize = 256;

/// The chances of a row's elements, by rank: `low` for the smallest to `high` for the largest.
pub(in crate::methods) struct RowChances {
    row: Row,
    low: f32,
    high: f32,
}

impl RowChances {
    /// The chances of rows of this kind.
    pub(in crate::methods) const fn new(row: Row, low: f32, high: f32) -> Self {
        Self { row, low, high }
    }

    /// The chance of a rank.
    #[inline(always)]
    fn of(&self, rank: u32) -> f32 {
        let span = self.high - self.low;
        match self.row.length {
            1 => self.low + span * 0.5,
            n => self.low + span * (rank as f32 / (n - 1) as f32),
        }
    }

    /// The elements of a chunk that stay, as bits.
    pub(in crate::methods) fn stays<T: Real>(&self, values: &[T], draws: &[f32]) -> Vec<u32> {
        let Row { length, stride } = self.row;
        let mut stays = vec![false; values.len()];
        let mut ranking = Ranking::new(length);
        let chances: Vec<f32> = (0..).take(length).map(|rank| self.of(rank)).collect();
        if stride == 1 {
            let rows = values.chunks_exact(length.max(1));
            let rows = rows.zip(draws.chunks_exact(length.max(1)));
            for ((values, draws), stays) in rows.zip(stays.chunks_exact_mut(length.max(1))) {
                ranking.decide(values, &chances, draws, stays);
            }
        } else {
            let mut row_values = vec![T::ZERO; length];
            let mut row_draws = vec![0.0; length];
            let mut row_stays = vec![false; length];
            for block in (0..values.len()).step_by(self.row.unit().max(1)) {
                for lane in 0..stride {
                    let first = block + lane;
                    gather(&values[first..], stride, &mut row_values);
                    gather(&draws[first..], stride, &mut row_draws);
                    ranking.decide(&row_values, &chances, &row_draws, &mut row_stays);
                    for (to, &from) in stays[first..].iter_mut().step_by(stride).zip(&row_stays) {
                        *to = from;
                    }
                }
            }
        }
        let mut words = vec![0; values.len().div_ceil(WORD)];
        crate::vectorized(
            #[inline(always)]
            || pack(&stays, &mut words, |stays| stays),
        );
        words
    }

    /// The factor of each element of a chunk: the inverse of its chance, or zero.
    pub(in crate::methods) fn factors<T: Real>(&self, values: &[T], draws: &[f32]) -> Vec<T> {
        let Row { length, stride } = self.row;
        let mut factors = vec![T::ZERO; values.len()];
        let mut ranking = Ranking::new(length);
        let mut row_values = vec![T::ZERO; length];
        for block in (0..values.len()).step_by(self.row.unit().max(1)) {
            for lane in 0..stride {
                let at = |k: usize| block + lane + k * stride;
                gather(&values[block + lane..], stride, &mut row_values);
                for (rank, &(_, k)) in (0..).zip(ranking.sorted(&row_values)) {
                    let chance = self.of(rank);
                    if draws[at(k as usize)] < chance {
                        factors[at(k as usize)] = T::from_f64(1.0 / f64::from(chance));
                    }
                }
            }
        }
        factors
    }
}

/// Takes every `stride`-th number.
fn gather<T: Copy>(from: &[T], stride: usize, to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from.iter().step_by(stride)) {
        *to = from;
    }
}

/// Buffers for the ranks of a row.
struct Ranking {
    /// The bin of each magnitude.
    bins: Vec<u16>,
    /// The rank at which each bin starts, and the last one ends.
    starts: Box<[u32; BINS + 1]>,
    /// The chances of each bin's first rank and of its last.
    ends: Box<[[f32; 2]; BINS]>,
    /// Elements that must be ranked.
    unsure: Vec<u32>,
    order: Vec<(u64, u32)>,
}

impl Ranking {
    fn new(length: usize) -> Self {
        Self {
            bins: vec![0; length],
            starts: Box::new([0; BINS + 1]),
            ends: Box::new([[0.0; 2]; BINS]),
            unsure: vec![0; length],
            order: Vec::new(),
        }
    }

    /// Finds the bin of each value and where each bin starts.
    fn count<T: Real>(&mut self, values: &[T]) {
        let Self { bins, starts, .. } = self;
        let shift = T::MANTISSA_BITS - STEP_BITS;
        crate::vectorized(
            #[inline(always)]
            || {
                let mut largest = 0;
                for value in values {
                    largest = value.upper_bits(shift).max(largest);
                }
                let lowest = largest.saturating_sub(BINS as u32 - 1);
                for (bin, value) in bins.iter_mut().zip(values) {
                    *bin = value.upper_bits(shift).saturating_sub(lowest) as u16;
                }
            },
        );
        // Borrowed once: in a loop the compiler would have to assume that writes to other buffers move it.
        let starts = &mut **starts;
        starts.fill(0);
        for &bin in &*bins {
            starts[usize::from(bin) % BINS + 1] += 1;
        }
        let mut sum = 0;
        for start in starts {
            sum += *start;
            *start = sum;
        }
    }

    /// Looks up the chances of each bin's ends.
    fn bound(&mut self, chances: &[f32]) {
        // Of an empty bin nobody asks; a branch for them would be guessed wrong.
        let last = chances.len().saturating_sub(1);
        let bins = self.ends.iter_mut().zip(self.starts.array_windows());
        for (ends, &[start, end]) in bins {
            let end = (end as usize).saturating_sub(1);
            *ends = [chances[last.min(start as usize)], chances[last.min(end)]];
        }
    }

    /// Decides which elements stay, by the chances of all ranks.
    fn decide<T: Real>(
        &mut self,
        values: &[T],
        chances: &[f32],
        draws: &[f32],
        stays: &mut [bool],
    ) {
        self.count(values);
        self.bound(chances);
        let mut n_unsure = 0;
        // Borrowed once, likewise.
        let (ends, unsure) = (&*self.ends, &mut self.unsure[..values.len()]);
        let row = self.bins.iter().zip(draws).zip(&mut *stays);
        for (k, ((&bin, &draw), stays)) in (0..).zip(row) {
            let [least, most] = ends[usize::from(bin) % BINS];
            let (is_below_least, is_below_most) = (draw < least, draw < most);
            *stays = is_below_least;
            // Written over by the next one where it is not unsure.
            unsure[n_unsure] = k;
            n_unsure += usize::from(is_below_least != is_below_most);
        }
        let unsure = std::mem::take(&mut self.unsure);
        self.rank_unsure(&unsure[..n_unsure], values, chances, draws, stays);
        self.unsure = unsure;
    }

    /// Decides for elements between whose possible chances their draws lie.
    fn rank_unsure<T: Real>(
        &mut self,
        unsure: &[u32],
        values: &[T],
        chances: &[f32],
        draws: &[f32],
        stays: &mut [bool],
    ) {
        // Untrained elements, of which there may be many, stand in their order.
        let zeros = || (0..values.len()).filter(|&k| values[k] == T::ZERO);
        let is_lowest = |&k: &u32| self.bins[k as usize] == 0;
        let n_lowest = unsure.iter().filter(|k| is_lowest(k)).count();
        let are_zeros = n_lowest > 0 && zeros().count() == self.starts[1] as usize;
        if are_zeros {
            for (k, &chance) in zeros().zip(chances) {
                stays[k] = draws[k] < chance;
            }
        }
        if unsure.len() - if are_zeros { n_lowest } else { 0 } > MAX_RANKED {
            for (&(_, k), &chance) in self.sorted(values).iter().zip(chances) {
                stays[k as usize] = draws[k as usize] < chance;
            }
            return;
        }
        for &k in unsure.iter().filter(|k| !(are_zeros && is_lowest(k))) {
            let k = k as usize;
            stays[k] = draws[k] < chances[rank(values, k)];
        }
    }

    /// All elements in the order of their ranks.
    fn sorted<T: Real>(&mut self, values: &[T]) -> &[(u64, u32)] {
        let keys = values.iter().map(|value| value.magnitude());
        self.order.clear();
        self.order.extend(keys.zip(0..));
        self.order.sort_unstable();
        &self.order
    }
}

/// The rank of one of several magnitudes: equal ones stand in their order.
fn rank<T: Real>(values: &[T], place: usize) -> usize {
    let own = values[place].magnitude();
    let (before, after) = values.split_at(place);
    let n = crate::vectorized(
        #[inline(always)]
        || {
            let mut n = 0;
            for value in before {
                n += u32::from(value.is_within(0, own));
            }
            if own > 0 {
                for value in after {
                    n += u32::from(value.is_within(0, own - 1));
                }
            }
            n
        },
    );
    n as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: sort, then compare.
    fn expected<T: Real>(chances: &RowChances, values: &[T], draws: &[f32]) -> Vec<bool> {
        let Row { length, stride } = chances.row;
        let mut stays = vec![false; values.len()];
        for first in 0..values.len() / length {
            let start = first / stride * length * stride + first % stride;
            let mut places: Vec<usize> = (0..length).map(|k| start + k * stride).collect();
            places.sort_by_key(|&place| (values[place].magnitude(), place));
            for (rank, place) in (0..).zip(places) {
                stays[place] = draws[place] < chances.of(rank);
            }
        }
        stays
    }

    fn check<T: Real>(row: Row, values: &[T]) {
        let mut draws = vec![0.0; values.len()];
        crate::random::Draws::new(1, "stays").fill_uniform(0, &mut draws);
        let chances = RowChances::new(row, 0.35, 0.65);
        let words = chances.stays(values, &draws);
        let factors = chances.factors(values, &draws);
        for (place, expected) in expected(&chances, values, &draws).into_iter().enumerate() {
            assert_eq!(words[place / WORD] >> (place % WORD) & 1 == 1, expected);
            assert_eq!(factors[place] != T::ZERO, expected);
        }
    }

    #[test]
    fn chances_by_counted_ranks_are_those_by_sorted_ranks() {
        let mut draws = vec![0.0; 6 * 1000];
        crate::random::Draws::new(1, "values").add_normal(1.0, 0, &mut draws);
        // Many equal ones, all equal ones, sizes beyond what the bins tell apart.
        let coarse: Vec<f32> = draws.iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let wide: Vec<f32> = draws.iter().map(|x| (x * 30.0).exp()).collect();
        let double: Vec<f64> = draws.iter().copied().map(f64::from).collect();
        for (length, stride) in [(1000, 1), (500, 3), (1, 6), (6000, 1)] {
            let row = Row { length, stride };
            check(row, &draws);
            check(row, &coarse);
            check(row, &wide);
            check(row, &vec![1.0_f32; 6000]);
            check(row, &double);
        }
    }
}
