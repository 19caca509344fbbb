//! Small numbers in runs and in packed bits: levels, and indices into dictionaries.
//!
//! Specification: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>, RLE / bit-packing hybrid.

/// `n` numbers of `width` bits; `None` where the bytes end before, or say nothing.
pub(super) fn read(bytes: &[u8], width: u8, n: usize) -> Option<Vec<u32>> {
    if width > 32 {
        return None;
    }
    // A run of any length takes few bytes: the caller bounds `n`.
    let mut numbers = Vec::with_capacity(n);
    let mut at = 0;
    while numbers.len() < n {
        let (header, length) = varint(bytes.get(at..)?)?;
        at += length;
        let count = usize::try_from(header >> 1).ok()?;
        let rest = n - numbers.len();
        if header & 1 == 0 {
            let n_bytes = usize::from(width).div_ceil(8);
            let value = bytes.get(at..at.checked_add(n_bytes)?)?;
            at += n_bytes;
            let value = value.iter().rev();
            let value = value.fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
            if count == 0 {
                return None;
            }
            numbers.resize(numbers.len() + count.min(rest), value);
        } else {
            if count == 0 {
                return None;
            }
            let n_bytes = count.checked_mul(usize::from(width))?;
            // The last group may be cut short behind the last number.
            let end = at.checked_add(n_bytes)?.min(bytes.len());
            let packed = bytes.get(at..end)?;
            at = end;
            unpack(
                packed,
                width,
                count.saturating_mul(8).min(rest),
                &mut numbers,
            )?;
        }
    }
    Some(numbers)
}

/// Numbers of `width` bits, the lowest bits first.
pub(super) fn unpack(packed: &[u8], width: u8, n: usize, into: &mut Vec<u32>) -> Option<()> {
    let (mut buffer, mut n_bits) = (0_u64, 0_u8);
    let mut bytes = packed.iter();
    let mask = (1_u64 << width) - 1;
    for _ in 0..n {
        while n_bits < width {
            buffer |= u64::from(*bytes.next()?) << n_bits;
            n_bits += 8;
        }
        into.push((buffer & mask) as u32);
        buffer >>= width;
        n_bits -= width;
    }
    Some(())
}

/// A number in groups of seven bits, and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some((number, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_bits_are_read() {
        // The format's own example: 0 to 7 in three bits each.
        let packed = [0b1000_1000, 0b1100_0110, 0b1111_1010];
        let mut bytes = vec![3];
        bytes.extend(packed);
        assert_eq!(read(&bytes, 3, 8), Some((0..8).collect()));
        // A run of five sevens before them.
        let mut both = vec![10, 7];
        both.extend(&bytes);
        let expected: Vec<u32> = [7; 5].into_iter().chain(0..8).collect();
        assert_eq!(read(&both, 3, 13), Some(expected));
        assert_eq!(read(&[200, 1], 0, 3), Some(vec![0; 3]));
        for (bytes, width) in [(&[][..], 1), (&[0], 1), (&[3, 1], 3), (&[1], 3), (&[2], 9)] {
            assert_eq!(read(bytes, width, 8), None, "{bytes:?}");
        }
        assert_eq!(read(&[2, 0, 0, 0, 0, 0], 33, 1), None);
    }
}
