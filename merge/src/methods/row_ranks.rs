//! Chances that grow with the rank of a magnitude in its row.
//!
//! An element stays when its draw is below the chance of its rank. Few ranks must be known for that: a
//! count of the magnitudes' upper bits tells between which ranks an element stands, and nearly always
//! its draw is below the chances of both or of neither. The others are ranked among their bin.

use super::Real;
use super::masks::{WORD, pack};
use super::sparsify::Row;

/// Counters of a row: sixteen powers of two, of 128 steps each; what is smaller is counted together.
const BINS: usize = 2048;

/// Bits of a mantissa that tell bins apart.
const STEP_BITS: u32 = 7;

/// So many comparisons for each element of a row rank single ones; where more are needed the row is
/// sorted.
const MAX_COMPARED: usize = 32;

/// The chances of a row's elements, by rank: `low` for the smallest to `high` for the largest.
pub(super) struct RowChances {
    row: Row,
    low: f32,
    high: f32,
}

impl RowChances {
    /// The chances of rows of this kind.
    pub(super) const fn new(row: Row, low: f32, high: f32) -> Self {
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

    /// Which of a chunk's elements stay, as bits.
    pub(super) fn stays<T: Real>(&self, values: &[T], draws: &[f32]) -> Vec<u32> {
        let Row { length, stride } = self.row;
        let mut stays = vec![false; values.len()];
        let mut ranking = Ranking::new(length);
        let chances: Vec<f32> = (0..).take(length).map(|rank| self.of(rank)).collect();
        if stride == 1 {
            let rows = values.chunks_exact(length.max(1));
            let rows = rows.zip(draws.chunks_exact(length.max(1)));
            for ((values, draws), stays) in rows.zip(stays.chunks_exact_mut(length.max(1))) {
                ranking.set(values.iter());
                ranking.decide::<T>(&chances, draws, stays);
            }
        } else {
            let mut row_draws = vec![0.0; length];
            let mut row_stays = vec![false; length];
            for block in (0..values.len()).step_by(self.row.unit().max(1)) {
                for lane in 0..stride {
                    let first = block + lane;
                    ranking.set(values[first..].iter().step_by(stride));
                    for (to, &from) in row_draws
                        .iter_mut()
                        .zip(draws[first..].iter().step_by(stride))
                    {
                        *to = from;
                    }
                    ranking.decide::<T>(&chances, &row_draws, &mut row_stays);
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

    /// What each element of a chunk is multiplied by: the inverse of its chance, or zero.
    pub(super) fn factors<T: Real>(&self, values: &[T], draws: &[f32]) -> Vec<T> {
        let Row { length, stride } = self.row;
        let mut factors = vec![T::ZERO; values.len()];
        let mut ranking = Ranking::new(length);
        for block in (0..values.len()).step_by(self.row.unit().max(1)) {
            for lane in 0..stride {
                let at = |k: usize| block + lane + k * stride;
                for (k, key) in ranking.keys.iter_mut().enumerate() {
                    *key = values[at(k)].magnitude();
                }
                for (rank, &(_, k)) in (0..).zip(ranking.sorted()) {
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

/// Buffers for the ranks of a row.
struct Ranking {
    /// Magnitudes.
    keys: Vec<u64>,
    /// Their bins.
    bins: Vec<u16>,
    /// The rank at which each bin starts, and the last one ends.
    starts: Vec<u32>,
    /// Where the next element of each bin goes.
    next: Vec<u32>,
    /// Magnitudes in the order of their bins, and within a bin in the order of the row.
    grouped: Vec<u64>,
    /// Elements that must be ranked, and their places in `grouped`.
    unsure: Vec<(u32, u32)>,
    order: Vec<(u64, u32)>,
}

impl Ranking {
    fn new(length: usize) -> Self {
        Self {
            keys: vec![0; length],
            bins: vec![0; length],
            starts: vec![0; BINS + 1],
            next: vec![0; BINS],
            grouped: vec![0; length],
            unsure: vec![(0, 0); length],
            order: Vec::new(),
        }
    }

    /// Takes a row's values.
    #[inline(always)]
    fn set<'a, T: Real>(&mut self, values: impl Iterator<Item = &'a T>) {
        for (key, value) in self.keys.iter_mut().zip(values) {
            *key = value.magnitude();
        }
    }

    /// Finds the bin of each key and where each bin starts.
    fn count<T: Real>(&mut self) {
        let Self {
            keys,
            bins,
            starts,
            next,
            ..
        } = self;
        let shift = T::MANTISSA_BITS - STEP_BITS;
        crate::vectorized(
            #[inline(always)]
            || {
                let largest = keys.iter().fold(0, |largest, &key| key.max(largest));
                let lowest = (largest >> shift).saturating_sub(BINS as u64 - 1);
                for (bin, &key) in bins.iter_mut().zip(&*keys) {
                    *bin = (key >> shift).saturating_sub(lowest) as u16;
                }
            },
        );
        starts.fill(0);
        for &bin in &*bins {
            starts[usize::from(bin) % BINS + 1] += 1;
        }
        let mut sum = 0;
        for start in &mut *starts {
            sum += *start;
            *start = sum;
        }
        next.copy_from_slice(&starts[..BINS]);
    }

    /// Decides which elements stay, by the chances of all ranks.
    fn decide<T: Real>(&mut self, chances: &[f32], draws: &[f32], stays: &mut [bool]) {
        self.count::<T>();
        let mut n_unsure = 0;
        let row = self.keys.iter().zip(&self.bins).zip(draws);
        for (k, (((&key, &bin), &draw), stays)) in (0_u32..).zip(row.zip(&mut *stays)) {
            let bin = usize::from(bin) % BINS;
            let place = self.next[bin];
            self.next[bin] = place + 1;
            self.grouped[place as usize] = key;
            // The place is the rank if all of the bin are equal, and between its least and its
            // greatest rank in any case.
            *stays = draw < chances[place as usize];
            let least = chances[self.starts[bin] as usize];
            let most = chances[self.starts[bin + 1] as usize - 1];
            // Written over by the next one where it is not unsure.
            self.unsure[n_unsure] = (k, place);
            n_unsure += usize::from(draw >= least && draw < most);
        }
        // Untrained elements, of which there may be many, need no ranking if they have their bin.
        let n_lowest = self.starts[1] as usize;
        let are_zeros = self.grouped[..n_lowest].iter().all(|&key| key == 0);
        let mut left = MAX_COMPARED * self.keys.len();
        for index in 0..n_unsure {
            let (k, place) = self.unsure[index];
            let (k, bin) = (k as usize, usize::from(self.bins[k as usize]) % BINS);
            if bin == 0 && are_zeros {
                continue;
            }
            let bin = self.starts[bin] as usize..self.starts[bin + 1] as usize;
            if left < bin.len() {
                return self.decide_by_sorting(chances, draws, stays);
            }
            left -= bin.len();
            stays[k] = draws[k]
                < chances[bin.start + rank(&self.grouped[bin.clone()], place as usize - bin.start)];
        }
    }

    fn decide_by_sorting(&mut self, chances: &[f32], draws: &[f32], stays: &mut [bool]) {
        for (&(_, k), &chance) in self.sorted().iter().zip(chances) {
            stays[k as usize] = draws[k as usize] < chance;
        }
    }

    /// All elements in the order of their ranks.
    fn sorted(&mut self) -> &[(u64, u32)] {
        self.order.clear();
        self.order.extend(self.keys.iter().copied().zip(0..));
        self.order.sort_unstable();
        &self.order
    }
}

/// The rank of one of several keys: equal ones stand in their order.
fn rank(keys: &[u64], place: usize) -> usize {
    let own = keys[place];
    let (before, after) = keys.split_at(place);
    let n = crate::vectorized(
        #[inline(always)]
        || {
            let not_above = before.iter().map(|&key| u64::from(key <= own));
            let below = after.iter().map(|&key| u64::from(key < own));
            not_above.sum::<u64>() + below.sum::<u64>()
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
