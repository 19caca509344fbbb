//! Which elements of a chunk stay, one bit each.

use super::Real;

/// Elements of a word.
pub(super) const WORD: usize = u32::BITS as usize;

/// Values that are looked at before their flags become bits.
const RUN: usize = 256;

/// Times eight bytes of 0 or 1, puts them side by side into the uppermost byte: byte k is moved by
/// 56 − 7k bits, and no two of the products meet.
const GATHER: u64 = 0x0102_0408_1020_4080;

/// Sets a bit for each value of which `is_set` says so; the first value is the lowest bit of the
/// first word.
#[inline(always)]
pub(super) fn pack<V: Copy>(values: &[V], words: &mut [u32], is_set: impl Fn(V) -> bool) {
    let mut flags = [0; RUN];
    for (values, words) in values.chunks(RUN).zip(words.chunks_mut(RUN / WORD)) {
        flags[values.len()..].fill(0);
        for (flag, &value) in flags.iter_mut().zip(values) {
            *flag = u8::from(is_set(value));
        }
        for (word, flags) in words.iter_mut().zip(flags.as_chunks::<WORD>().0) {
            let mut bytes = [0; 4];
            for (byte, flags) in bytes.iter_mut().zip(flags.as_chunks::<8>().0) {
                *byte = (u64::from_le_bytes(*flags).wrapping_mul(GATHER) >> 56) as u8;
            }
            *word = u32::from_le_bytes(bytes);
        }
    }
}

/// For each byte eight masks: all bits where it has one.
static MASKS: [[u32; 8]; 256] = {
    let mut masks = [[0; 8]; 256];
    let mut byte = 0;
    while byte < masks.len() {
        let mut place = 0;
        while place < 8 {
            masks[byte][place] = (byte as u32 >> place & 1).wrapping_neg();
            place += 1;
        }
        byte += 1;
    }
    masks
};

/// Sets to zero the values whose bits are not set.
#[inline(always)]
pub(super) fn clear<T: Real>(words: &[u32], values: &mut [T]) {
    let (whole, rest) = values.as_chunks_mut::<WORD>();
    let n_whole = whole.len();
    // Looked up, for of shifts compilers make steps over many words at once.
    for (bits, values) in words.iter().zip(whole) {
        for (byte, values) in bits
            .to_le_bytes()
            .into_iter()
            .zip(values.as_chunks_mut::<8>().0)
        {
            and(values, &MASKS[usize::from(byte)]);
        }
    }
    if let Some(bits) = words.get(n_whole) {
        for (byte, values) in bits.to_le_bytes().into_iter().zip(rest.chunks_mut(8)) {
            and(values, &MASKS[usize::from(byte)]);
        }
    }
}

#[inline(always)]
fn and<T: Real>(values: &mut [T], masks: &[u32; 8]) {
    for (value, &mask) in values.iter_mut().zip(masks) {
        *value = value.and(mask);
    }
}

/// Calls `see` with the places of the bits that are set, in order.
#[inline(always)]
pub(super) fn each_set(words: &[u32], mut see: impl FnMut(usize)) {
    for (index, &word) in words.iter().enumerate() {
        let mut left = word;
        while left != 0 {
            see(index * WORD + left.trailing_zeros() as usize);
            left &= left - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_stays_and_the_rest_goes() {
        for n in [0_usize, 1, 31, 32, 33, 100, 256, 300, 777] {
            let values: Vec<f32> = (1..=n).map(|k| k as f32).collect();
            let mut words = vec![0; n.div_ceil(WORD)];
            pack(&values, &mut words, |value| {
                (value as usize).is_multiple_of(3)
            });
            let mut left = values.clone();
            clear(&words, &mut left);
            let stays = |value: f32| {
                if (value as usize).is_multiple_of(3) {
                    value
                } else {
                    0.0
                }
            };
            let expected: Vec<f32> = values.iter().map(|&value| stays(value)).collect();
            assert_eq!(left, expected);
            let mut places = Vec::new();
            each_set(&words, |place| places.push(place));
            let multiples: Vec<usize> = (0..n).filter(|place| (place + 1) % 3 == 0).collect();
            assert_eq!(places, multiples);
        }
    }
}
