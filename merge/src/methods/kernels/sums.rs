//! Sums over many elements, in an order that is the same for any width of the processor's vectors.

use crate::methods::kernels::masks::WORD;
use crate::methods::ranking::by_count::BLOCK;
use crate::methods::{Real, Value};

/// Running sums of a sum.
pub(in crate::methods) const LANES: usize = 16;

/// `Σ f(k)` in `f64`.
#[inline(always)]
pub(in crate::methods) fn lanes(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let whole = n - n % LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    for index in whole..n {
        sums[index - whole] += f(index);
    }
    sums.iter().sum()
}

/// `Σ f(aₖ, bₖ)` likewise, without a look at bounds. One sum at a time: of several at once compilers
/// make steps of single elements.
#[inline(always)]
fn lanes_of<V: Value>(a: &[V], b: &[V], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f(a.real().to_f64(), b.real().to_f64());
        }
    }
    for (sum, (&a, &b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += f(a.real().to_f64(), b.real().to_f64());
    }
    sums.iter().sum()
}

/// The product `a · b` in `f64`.
pub(in crate::methods) fn dot<V: Value>(a: &[V], b: &[V]) -> f64 {
    crate::vectorized(
        #[inline(always)]
        || lanes_of(a, b, |a, b| a * b),
    )
}

/// The products `a · a`, `a · b` and `b · b`, of one look at each number.
///
/// Up to [`BLOCK`] products are added in the type that they are computed in, in [`LANES`] sums, and the
/// blocks in `f64`. Products of bf16 numbers are exact in `f32`.
pub(in crate::methods) fn pair_products<V: Value>(a: &[V], b: &[V]) -> [f64; 3] {
    let mut totals = [0.0; 3];
    crate::vectorized(
        #[inline(always)]
        || {
            for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
                let mut sums = [[V::Real::ZERO; LANES]; 3];
                let (a_whole, a_rest) = a.as_chunks::<LANES>();
                let (b_whole, b_rest) = b.as_chunks::<LANES>();
                for (a, b) in a_whole.iter().zip(b_whole) {
                    add_products(&mut sums, a, b);
                }
                add_products(&mut sums, a_rest, b_rest);
                add_lanes(&mut totals, &sums);
            }
        },
    );
    if totals.iter().all(|total| total.is_finite()) {
        return totals;
    }
    // Squares beyond the type's range.
    [dot(a, a), dot(a, b), dot(b, b)]
}

/// Adds products of one pair to each running sum.
#[inline(always)]
fn add_products<V: Value>(sums: &mut [[V::Real; LANES]; 3], a: &[V], b: &[V]) {
    let [aa, ab, bb] = sums;
    for (lane, (a, b)) in a.iter().zip(b).enumerate() {
        let (a, b) = (a.real(), b.real());
        aa[lane] += a * a;
        ab[lane] += a * b;
        bb[lane] += b * b;
    }
}

/// Adds up running sums.
#[inline(always)]
fn add_lanes<T: Real, const N: usize>(totals: &mut [f64; N], sums: &[[T; LANES]; N]) {
    for (total, lanes) in totals.iter_mut().zip(sums) {
        *total += lanes.iter().map(|lane| lane.to_f64()).sum::<f64>();
    }
}

/// Sums of the magnitudes of `a − b`, added like those of [`pair_products`]: of all, and of those whose
/// bit in `words` is set.
pub(in crate::methods) fn masked_magnitudes<V: Value>(a: &[V], b: &[V], words: &[u32]) -> [f64; 2] {
    let mut totals = [0.0; 2];
    crate::vectorized(
        #[inline(always)]
        || {
            let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
            for ((a, b), words) in blocks.zip(words.chunks(BLOCK / WORD)) {
                let mut sums = [[V::Real::ZERO; LANES]; 2];
                let (a_whole, a_rest) = a.as_chunks::<WORD>();
                let (b_whole, b_rest) = b.as_chunks::<WORD>();
                for ((a, b), &word) in a_whole.iter().zip(b_whole).zip(words) {
                    add_magnitudes(&mut sums, &a[..LANES], &b[..LANES], word);
                    add_magnitudes(&mut sums, &a[LANES..], &b[LANES..], word >> LANES);
                }
                let last = words.get(a_whole.len()).copied().unwrap_or_default();
                let halves = a_rest.chunks(LANES).zip(b_rest.chunks(LANES));
                for ((a, b), word) in halves.zip([last, last >> LANES]) {
                    add_magnitudes(&mut sums, a, b, word);
                }
                add_lanes(&mut totals, &sums);
            }
        },
    );
    totals
}

/// Adds one difference to each running sum.
#[inline(always)]
fn add_magnitudes<V: Value>(sums: &mut [[V::Real; LANES]; 2], a: &[V], b: &[V], word: u32) {
    let [before, after] = sums;
    for (lane, (a, b)) in a.iter().zip(b).enumerate() {
        let magnitude = (a.real() - b.real()).abs();
        let is_set = word & 1 << lane != 0;
        before[lane] += magnitude;
        after[lane] += if is_set { magnitude } else { V::Real::ZERO };
    }
}

/// The sum of magnitudes in `f64`.
pub(in crate::methods) fn magnitudes<T: Real>(values: &[T]) -> f64 {
    crate::vectorized(
        #[inline(always)]
        || lanes_of(values, values, |value, _| value.abs()),
    )
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::random::Draws;

    #[test]
    fn all_elements_are_added_whatever_their_number_and_type() {
        for n in [0, 1, 15, 16, 17, 33, 1000, 1024, 3000] {
            let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
            Draws::new(1, "a").add_normal(1.0, 0, &mut a);
            Draws::new(1, "b").add_normal(1.0, 0, &mut b);
            let stored = |values: &[f32]| -> Vec<bf16> {
                values.iter().map(|&value| bf16::from_f32(value)).collect()
            };
            check(&a, &b);
            check(&stored(&a), &stored(&b));
        }
    }

    fn check<V: Value>(a: &[V], b: &[V]) {
        let words: Vec<u32> = (0..a.len().div_ceil(WORD) as u32)
            .map(|word| word * 0x9e37_79b9)
            .collect();
        let is_set = |index: usize| words[index / WORD] >> (index % WORD) & 1 == 1;
        let pairs = a.iter().zip(b);
        let pairs = pairs.map(|(a, b)| (a.real().to_f64(), b.real().to_f64()));
        let sum = |f: &dyn Fn(usize, f64, f64) -> f64| -> f64 {
            pairs
                .clone()
                .enumerate()
                .map(|(index, (a, b))| f(index, a, b))
                .sum()
        };
        let near = |found: f64, exact: f64| {
            let bound = 1e-6 * (1.0 + a.len() as f64);
            assert!(
                (found - exact).abs() < bound,
                "{found} for {exact} of {}",
                a.len()
            );
        };
        let [aa, ab, bb] = pair_products(a, b);
        near(aa, sum(&|_, a, _| a * a));
        near(ab, sum(&|_, a, b| a * b));
        near(bb, sum(&|_, _, b| b * b));
        assert!((dot(a, b) - sum(&|_, a, b| a * b)).abs() < 1e-9);
        let [before, after] = masked_magnitudes(a, b, &words);
        near(before, sum(&|_, a, b| (a - b).abs()));
        near(
            after,
            sum(&|index, a, b| if is_set(index) { (a - b).abs() } else { 0.0 }),
        );
    }

    #[test]
    fn squares_beyond_f32_are_added_in_f64() {
        let found = pair_products(&[1e30_f32, 1.0], &[-1e30_f32, 2.0]);
        let big = f64::from(1e30_f32) * f64::from(1e30_f32);
        assert_eq!(found, [big + 1.0, 2.0 - big, big + 4.0]);
    }
}
