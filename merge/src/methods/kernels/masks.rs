//! The elements of a chunk that stay, one bit each.

/// Elements of a word.
pub(in crate::methods) const WORD: usize = u32::BITS as usize;

/// Values that are looked at before their flags become bits.
const RUN: usize = 256;

/// Times eight bytes of 0 or 1, puts them side by side into the uppermost byte: byte k is moved by
/// 56 − 7k bits, and no two of the products meet.
const GATHER: u64 = 0x0102_0408_1020_4080;

/// Sets a bit for each value of which `is_set` says so; the first value is the lowest bit of the
/// first word.
#[inline(always)]
pub(in crate::methods) fn pack<V: Copy>(
    values: &[V],
    words: &mut [u32],
    is_set: impl Fn(V) -> bool,
) {
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

/// Calls `see` with the places of the bits that are set, in order.
#[inline(always)]
pub(in crate::methods) fn each_set(words: &[u32], mut see: impl FnMut(usize)) {
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
    fn places_of_what_is_packed_are_found_again() {
        for n in [0_usize, 1, 31, 32, 33, 100, 256, 300, 777] {
            let values: Vec<usize> = (1..=n).collect();
            let mut words = vec![0; n.div_ceil(WORD)];
            pack(&values, &mut words, |value| value.is_multiple_of(3));
            let mut places = Vec::new();
            each_set(&words, |place| places.push(place));
            let multiples: Vec<usize> = (0..n).filter(|place| (place + 1) % 3 == 0).collect();
            assert_eq!(places, multiples);
        }
    }
}
