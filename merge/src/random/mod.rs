//! Random draws keyed by seed, name and index: the same numbers whatever the chunking, the number
//! of threads and the machine.

mod mersenne;

pub use mersenne::Mersenne;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// Words drawn at a time.
const BATCH: usize = 1024;

/// 2⁻²⁴: the upper 24 bits of a word are exact in `f32`.
const UNIT: f32 = 1.0 / 16_777_216.0;

/// An endless row of draws, one per element of a tensor.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u8; 32],
}

impl Draws {
    /// The draws for `name` under `seed`: ChaCha8 keyed with the SHA-256 of both.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(name.as_bytes());
        Self {
            key: hash.finalize().into(),
        }
    }

    /// Adds `scale` times standard normal draws `first..first + out.len()` to `out`.
    ///
    /// Elements 2k and 2k + 1 come from words 2k and 2k + 1 by the method of Box and Muller, in
    /// `f32` and with elementary operations only, which round alike everywhere.
    ///
    /// # Example
    /// ```
    /// let draws = merge::random::Draws::new(7, "some.weight");
    /// let (mut whole, mut tail) = ([0.0; 5], [0.0; 2]);
    /// draws.add_normal(1.0, 0, &mut whole);
    /// draws.add_normal(1.0, 3, &mut tail);
    /// assert_eq!(whole[3..], tail);
    /// ```
    pub fn add_normal(&self, scale: f32, first: usize, out: &mut [f32]) {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        let skipped = first % 2;
        generator.set_word_pos((first - skipped) as u128);
        let mut words = [0u8; 4 * BATCH];
        let (head, body) = out.split_at_mut(skipped.min(out.len()));
        if let [odd] = head {
            generator.fill_bytes(&mut words[..8]);
            *odd += scale * normal_pair(&words[..8]).1;
        }
        for batch in body.chunks_mut(BATCH) {
            let n_words = batch.len().next_multiple_of(2);
            let words = &mut words[..4 * n_words];
            generator.fill_bytes(words);
            for (elements, words) in batch.chunks_mut(2).zip(words.chunks_exact(8)) {
                let pair = normal_pair(words);
                elements[0] += scale * pair.0;
                if let Some(second) = elements.get_mut(1) {
                    *second += scale * pair.1;
                }
            }
        }
    }
}

impl Draws {
    /// Writes draws `first..first + out.len()`, uniform in [0, 1), to `out`: element k is the upper
    /// 24 bits of word k.
    pub fn fill_uniform(&self, first: usize, out: &mut [f32]) {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        generator.set_word_pos(first as u128);
        let mut words = [0u8; 4 * BATCH];
        for batch in out.chunks_mut(BATCH) {
            let words = &mut words[..4 * batch.len()];
            generator.fill_bytes(words);
            let (words, _) = words.as_chunks::<4>();
            for (out, word) in batch.iter_mut().zip(words) {
                *out = (u32::from_le_bytes(*word) >> 8) as f32 * UNIT;
            }
        }
    }

    /// Writes words `first..first + out.len()` of another row, for draws of single bits. Row 0 is that
    /// of all other draws.
    pub fn fill_bits(&self, row: u32, first: usize, out: &mut [u32]) {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        generator.set_stream(u64::from(row));
        generator.set_word_pos(first as u128);
        generator.fill_bytes(bytemuck::cast_slice_mut(out));
        for word in out {
            *word = u32::from_le(*word);
        }
    }

    /// Sixteen more bits for element `index`, where those of the rows do not decide: key and index,
    /// mixed as in SplitMix64 (Steele, Lea and Flood 2014, with the constants of Stafford's variant 13).
    #[must_use]
    pub fn fine(&self, index: usize) -> u16 {
        let [key, ..] = self.key.as_chunks::<8>().0 else {
            return 0;
        };
        let mut bits = u64::from_le_bytes(*key)
            .wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) >> 48) as u16
    }

    /// Draws one after the other, for whatever needs a number of them that is not known before.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence(ChaCha8Rng::from_seed(self.key))
    }
}

/// Draws in a row.
#[derive(Clone, Debug)]
pub struct Sequence(ChaCha8Rng);

impl Sequence {
    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Uniform among `0..n`, every number equally likely; 0 for `n` of 0 or 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        // The part of the range that holds every remainder equally often.
        let whole = u64::MAX - u64::MAX.checked_rem(n).unwrap_or_default();
        loop {
            let draw = self.0.next_u64();
            if draw < whole || n < 2 {
                return draw.checked_rem(n).unwrap_or_default() as usize;
            }
        }
    }

    /// The index of a weight, drawn with a probability in proportion to it; `None` when no weight
    /// is above zero.
    pub fn weighted(&mut self, weights: &[f32]) -> Option<usize> {
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut left = self.uniform() * total;
        let mut last = None;
        for (index, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                last = Some(index);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
        last
    }

    /// Puts items in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

/// Two independent standard normal numbers from eight bytes.
fn normal_pair(words: &[u8]) -> (f32, f32) {
    let radius_word = u32::from_le_bytes([words[0], words[1], words[2], words[3]]);
    let angle_word = u32::from_le_bytes([words[4], words[5], words[6], words[7]]);
    // In (0, 1], so that the logarithm is finite: radii reach 5.77.
    let uniform = ((radius_word >> 8) as f32 + 1.0) * UNIT;
    let radius = (-2.0 * ln(uniform)).sqrt();
    // The lower 2 bits turn by whole quarters, the upper 24 within an eighth to either side.
    let angle = ((angle_word >> 8) as f32 * UNIT - 0.5) * std::f32::consts::FRAC_PI_2;
    let (sin, cos) = sin_cos(angle);
    let (x, y) = match angle_word & 3 {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    };
    (radius * x, radius * y)
}

/// Natural logarithm of a normal positive number, to within 3e-7 of its size.
fn ln(x: f32) -> f32 {
    // x = 2ᵏ m with m in [√½, √2), ln m = 2 artanh((m − 1)/(m + 1)).
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = (bits as i32) >> 23;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF_BITS);
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    exponent as f32 * std::f32::consts::LN_2 + 2.0 * s * series
}

/// Sine and cosine of an angle of at most π/4, by their series.
fn sin_cos(x: f32) -> (f32, f32) {
    let x2 = x * x;
    let sin =
        x * (1.0 + x2 * (-1.0 / 6.0 + x2 * (1.0 / 120.0 + x2 * (-1.0 / 5040.0 + x2 / 362_880.0))));
    let cos = 1.0 + x2 * (-0.5 + x2 * (1.0 / 24.0 + x2 * (-1.0 / 720.0 + x2 / 40320.0)));
    (sin, cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elementary_functions_agree_with_the_library() {
        for step in 1..=10_000 {
            let x = step as f32 / 10_000.0;
            assert!((ln(x) - x.ln()).abs() <= 3e-7 * x.ln().abs() + 1e-9, "{x}");
            let angle = (x - 0.5) * std::f32::consts::FRAC_PI_2;
            let (sin, cos) = sin_cos(angle);
            assert!((sin - angle.sin()).abs() < 2e-7, "{angle}");
            assert!((cos - angle.cos()).abs() < 2e-7, "{angle}");
        }
        assert!((ln(UNIT) - UNIT.ln()).abs() < 1e-5);
    }

    #[test]
    fn normal_draws_have_normal_moments() {
        let mut draws = vec![0.0; 1_000_001];
        Draws::new(1, "x").add_normal(1.0, 0, &mut draws);
        let moment = |power: i32| {
            let sum: f64 = draws.iter().map(|&x| f64::from(x).powi(power)).sum();
            sum / draws.len() as f64
        };
        // Five standard errors: sqrt(1, 2, 15, 96 / 1e6).
        assert!(moment(1).abs() < 5e-3);
        assert!((moment(2) - 1.0).abs() < 7.1e-3);
        assert!(moment(3).abs() < 2e-2);
        assert!((moment(4) - 3.0).abs() < 5e-2);
    }

    #[test]
    fn draws_do_not_depend_on_the_chunks() {
        let draws = Draws::new(3, "transformer.cls_token");
        let mut whole = vec![0.0; 5000];
        draws.add_normal(0.5, 0, &mut whole);
        for size in [1, 2, 3, 1023, 1024, 1025, 4999] {
            let mut pieces = vec![0.0; 5000];
            for (index, piece) in pieces.chunks_mut(size).enumerate() {
                draws.add_normal(0.5, index * size, piece);
            }
            assert_eq!(whole, pieces, "in chunks of {size}");
        }
    }

    #[test]
    fn uniform_draws_do_not_depend_on_the_chunks_and_fill_the_unit() {
        let draws = Draws::new(5, "drop");
        let mut whole = vec![0.0; 10_000];
        draws.fill_uniform(0, &mut whole);
        let mut tail = vec![0.0; 17];
        draws.fill_uniform(9_983, &mut tail);
        assert_eq!(whole[9_983..], tail);
        assert!(whole.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = whole.iter().sum::<f32>() / whole.len() as f32;
        // Five standard errors of sqrt(1 / 12 / n).
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
    }

    #[test]
    fn bits_are_those_of_the_words_whatever_the_chunks_and_rows_differ() {
        let draws = Draws::new(5, "mask");
        let mut whole = vec![0; 1000];
        draws.fill_bits(0, 0, &mut whole);
        let mut uniform = vec![0.0; 1000];
        draws.fill_uniform(0, &mut uniform);
        for (&word, uniform) in whole.iter().zip(uniform) {
            assert_eq!((word >> 8) as f32 * UNIT, uniform);
        }
        draws.fill_bits(3, 0, &mut whole);
        for size in [1, 2, 3, 15, 16, 17, 999] {
            let mut pieces = vec![0; 1000];
            for (index, piece) in pieces.chunks_mut(size).enumerate() {
                draws.fill_bits(3, index * size, piece);
            }
            assert_eq!(whole, pieces, "in chunks of {size}");
        }
        let mut other = vec![0; 1000];
        draws.fill_bits(4, 0, &mut other);
        assert!(whole.iter().zip(&other).all(|(a, b)| a != b));
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_every_place_is_equally_likely() {
        let mut sequence = Draws::new(1, "order").sequence();
        let mut counts = [0; 5];
        for _ in 0..5000 {
            let mut items = [0, 1, 2, 3, 4];
            sequence.shuffle(&mut items);
            counts[items.iter().position(|&item| item == 0).unwrap_or(9)] += 1;
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3, 4]);
        }
        // Five standard errors of sqrt(5000 · 0.2 · 0.8).
        assert!(
            counts.iter().all(|&n| (n - 1000_i32).abs() < 142),
            "{counts:?}"
        );
    }

    #[test]
    fn a_weighted_draw_goes_by_the_weights_and_never_takes_a_zero() {
        let mut sequence = Draws::new(2, "negatives").sequence();
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[sequence.weighted(&[0.0, 1.0, 3.0, 0.0]).unwrap_or(0)] += 1;
        }
        assert_eq!((counts[0], counts[3]), (0, 0));
        assert!((counts[1] - 1000_i32).abs() < 137, "{counts:?}");
        assert_eq!(sequence.weighted(&[0.0, 0.0]), None);
        assert_eq!(sequence.below(1), 0);
    }

    #[test]
    fn draws_differ_by_seed_and_by_name() {
        let first = |seed, name| {
            let mut out = [0.0; 4];
            Draws::new(seed, name).add_normal(1.0, 0, &mut out);
            out
        };
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
