//! Which elements of a chunk stay, one bit each.

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

/// For each byte eight: all bits where it has one.
static FLAGS: [[u8; 8]; 256] = {
    let mut flags = [[0; 8]; 256];
    let mut byte = 0;
    while byte < flags.len() {
        let mut place = 0;
        while place < 8 {
            flags[byte][place] = (byte as u8 >> place & 1).wrapping_neg();
            place += 1;
        }
        byte += 1;
    }
    flags
};

/// Makes a byte of each bit, of which all bits are set or none. They are looked up, for of shifts
/// compilers make steps over many words at once; of bytes they make masks of whole vectors.
#[inline(always)]
pub(super) fn expand(words: &[u32], flags: &mut [u8]) {
    let (whole, rest) = flags.as_chunks_mut::<WORD>();
    if let Some(bits) = words.get(whole.len()) {
        let mut last = [[0; WORD]];
        expand_whole(&[*bits], &mut last);
        rest.copy_from_slice(&last[0][..rest.len()]);
    }
    expand_whole(words, whole);
}

#[inline(always)]
fn expand_whole(words: &[u32], flags: &mut [[u8; WORD]]) {
    for (bits, flags) in words.iter().zip(flags) {
        let places = flags.as_chunks_mut::<8>().0.iter_mut();
        for (byte, flags) in bits.to_le_bytes().into_iter().zip(places) {
            *flags = FLAGS[usize::from(byte)];
        }
    }
}

/// The value where a flag is set, and zero where it is not.
#[inline(always)]
pub(super) fn keep(value: f64, flag: u8) -> f64 {
    f64::from_bits(value.to_bits() & i64::from(flag as i8) as u64)
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
            let values: Vec<usize> = (1..=n).collect();
            let mut words = vec![0; n.div_ceil(WORD)];
            pack(&values, &mut words, |value| value.is_multiple_of(3));
            let mut flags = vec![1; n];
            expand(&words, &mut flags);
            for (&value, &flag) in values.iter().zip(&flags) {
                let stays = if value.is_multiple_of(3) { -1.5 } else { 0.0 };
                assert_eq!(keep(-1.5, flag), stays, "{value} of {n}");
            }
            let mut places = Vec::new();
            each_set(&words, |place| places.push(place));
            let multiples: Vec<usize> = (0..n).filter(|place| (place + 1) % 3 == 0).collect();
            assert_eq!(places, multiples);
        }
    }
}
