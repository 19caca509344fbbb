//! The values of a page.

use std::ops::Range;

use super::footer::Physical;
use super::hybrid;

/// Values, one after the other. Bytes are ranges of a page.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Bytes(Vec<Range<usize>>),
}

impl Values {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    /// Memory that they take, without the bytes that ranges are of.
    pub(super) fn n_bytes(&self) -> usize {
        match self {
            Self::Integers(values) => size_of_val(values.as_slice()),
            Self::Floats(values) => size_of_val(values.as_slice()),
            Self::Bytes(values) => size_of_val(values.as_slice()),
        }
    }
}

/// Encodings by their numbers in the format.
pub(super) const PLAIN: i64 = 0;
pub(super) const DICTIONARY: [i64; 2] = [2, 8];
const RLE: i64 = 3;
const DELTA: i64 = 5;
const DELTA_LENGTH: i64 = 6;

/// `n` values in an encoding that refers to no dictionary; `bytes` are those from `start` of a page on.
pub(super) fn read(
    physical: Physical,
    encoding: i64,
    page: &[u8],
    start: usize,
    n: usize,
) -> Result<Values, String> {
    let short = || "a page has fewer values than it says".to_owned();
    let bytes = page.get(start..).ok_or_else(short)?;
    match (encoding, physical) {
        (PLAIN, _) => plain(physical, bytes, start, n),
        (RLE, Physical::Boolean) => {
            // Four bytes of length before it.
            let bits = bytes.get(4..).and_then(|bytes| hybrid::read(bytes, 1, n));
            let bits = bits.ok_or_else(short)?;
            Ok(Values::Integers(bits.into_iter().map(i64::from).collect()))
        }
        (DELTA, Physical::Int32 | Physical::Int64) => {
            let (values, _) = deltas(bytes, n).ok_or_else(short)?;
            Ok(Values::Integers(values))
        }
        (DELTA_LENGTH, Physical::Bytes) => {
            let (lengths, end) = deltas(bytes, n).ok_or_else(short)?;
            let mut at = start + end;
            let ranges = lengths.into_iter().map(|length| {
                let from = at;
                at = at.checked_add(usize::try_from(length).ok()?)?;
                (at <= page.len()).then_some(from..at)
            });
            let ranges: Option<_> = ranges.collect();
            Ok(Values::Bytes(ranges.ok_or_else(short)?))
        }
        (7, _) => Err(unread("DELTA_BYTE_ARRAY")),
        (9, _) => Err(unread("BYTE_STREAM_SPLIT")),
        (other, _) => Err(unread(&format!("of number {other}"))),
    }
}

fn unread(name: &str) -> String {
    format!("its encoding {name} is not read; PLAIN, dictionaries and deltas are")
}

fn plain(physical: Physical, bytes: &[u8], start: usize, n: usize) -> Result<Values, String> {
    let short = || "a page has fewer values than it says".to_owned();
    let fixed = |width: usize| {
        let n_bytes = n.checked_mul(width).ok_or_else(short)?;
        bytes.get(..n_bytes).ok_or_else(short)
    };
    Ok(match physical {
        Physical::Boolean => {
            let mut bits = Vec::new();
            let packed = bytes.get(..n.div_ceil(8)).ok_or_else(short)?;
            hybrid::unpack(packed, 1, n, &mut bits).ok_or_else(short)?;
            Values::Integers(bits.into_iter().map(i64::from).collect())
        }
        Physical::Int32 => {
            let (chunks, _) = fixed(4)?.as_chunks::<4>();
            let numbers = chunks.iter().map(|chunk| i32::from_le_bytes(*chunk));
            Values::Integers(numbers.map(i64::from).collect())
        }
        Physical::Int64 => {
            let (chunks, _) = fixed(8)?.as_chunks::<8>();
            let numbers = chunks.iter().map(|chunk| i64::from_le_bytes(*chunk));
            Values::Integers(numbers.collect())
        }
        Physical::Float => {
            let (chunks, _) = fixed(4)?.as_chunks::<4>();
            let numbers = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk));
            Values::Floats(numbers.map(f64::from).collect())
        }
        Physical::Double => {
            let (chunks, _) = fixed(8)?.as_chunks::<8>();
            let numbers = chunks.iter().map(|chunk| f64::from_le_bytes(*chunk));
            Values::Floats(numbers.collect())
        }
        Physical::Bytes => {
            // A value takes four bytes at least.
            let mut ranges = Vec::with_capacity(n.min(bytes.len() / 4));
            let mut at = 0_usize;
            for _ in 0..n {
                let length = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
                let length = u32::from_le_bytes(*length.ok_or_else(short)?) as usize;
                let from = at + 4;
                at = from.checked_add(length).ok_or_else(short)?;
                if at > bytes.len() {
                    return Err(short());
                }
                ranges.push(start + from..start + at);
            }
            Values::Bytes(ranges)
        }
        Physical::Other(name) => return Err(format!("values of the type {name} are not read")),
    })
}

/// `n` numbers by their differences, and where they end.
fn deltas(bytes: &[u8], n: usize) -> Option<(Vec<i64>, usize)> {
    let mut at = 0;
    let mut next = || {
        let (number, length) = hybrid::varint(bytes.get(at..)?)?;
        at += length;
        Some(number)
    };
    let signed = |number: u64| (number >> 1) as i64 ^ -((number & 1) as i64);
    let (block, n_parts, total) = (next()?, next()?, next()?);
    let mut value = signed(next()?);
    let per_part = block
        .checked_div(n_parts)
        .filter(|n| *n > 0 && n.is_multiple_of(8))?;
    if total != n as u64 || n_parts > 1 << 16 || per_part > 1 << 20 {
        return None;
    }
    let mut values = Vec::with_capacity(n);
    if n > 0 {
        values.push(value);
    }
    while values.len() < n {
        let (least, length) = hybrid::varint(bytes.get(at..)?)?;
        at += length;
        let widths = bytes.get(at..at.checked_add(n_parts as usize)?)?;
        at += widths.len();
        for &width in widths {
            if values.len() == n {
                break;
            }
            let n_bytes = usize::from(width) * (per_part as usize / 8);
            let packed = bytes.get(at..at.checked_add(n_bytes)?)?;
            at += n_bytes;
            let wanted = (per_part as usize).min(n - values.len());
            for index in 0..wanted {
                let difference = bits(packed, width, index)?;
                let step = signed(least).wrapping_add(difference as i64);
                value = value.wrapping_add(step);
                values.push(value);
            }
        }
    }
    Some((values, at))
}

/// A number of up to 64 bits, the lowest bits first.
fn bits(packed: &[u8], width: u8, index: usize) -> Option<u64> {
    if width > 64 {
        return None;
    }
    let first = index * usize::from(width);
    let mut number = 0_u64;
    for bit in 0..usize::from(width) {
        let place = first + bit;
        let is_set = packed.get(place / 8)? >> (place % 8) & 1;
        number |= u64::from(is_set) << bit;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_ranges_behind_their_lengths() {
        let page = [9, 2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0];
        let read = |n| read(Physical::Bytes, PLAIN, &page, 1, n);
        assert_eq!(read(2), Ok(Values::Bytes(vec![5..7, 11..11])));
        assert!(read(3).is_err());
    }

    #[test]
    fn differences_are_added_up() {
        // The format's example: 7, 5, 3, 1, 2, 3, 4, 5: least difference -2, then 0 0 0 3 3 3 3 in two bits.
        let bytes = [
            128,
            1,
            4,
            8,
            14,
            3,
            2,
            0,
            0,
            0,
            0b1100_0000,
            0b0011_1111,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let (values, end) = deltas(&bytes, 8).expect("numbers");
        assert_eq!(values, [7, 5, 3, 1, 2, 3, 4, 5]);
        assert_eq!(end, bytes.len());
        assert_eq!(deltas(&bytes, 9), None);
        assert_eq!(deltas(&bytes[..10], 8), None);
    }
}
