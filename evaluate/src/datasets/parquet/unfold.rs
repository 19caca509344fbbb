//! Pages as they are stored, and as they are decoded.

use std::io::Read;

/// How the pages of a column are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Plain,
    Snappy,
    Gzip,
    Lz4Block,
}

impl Codec {
    /// By its number in the format, or the name of one that is not read.
    pub(super) fn of(number: i64) -> Result<Self, String> {
        Err(match number {
            0 => return Ok(Self::Plain),
            1 => return Ok(Self::Snappy),
            2 => return Ok(Self::Gzip),
            7 => return Ok(Self::Lz4Block),
            3 => "LZO".into(),
            4 => "Brotli".into(),
            5 => "LZ4 in Hadoop's frames".into(),
            6 => "zstd".into(),
            other => format!("codec {other}"),
        })
    }

    /// The bytes of a page, exactly `n` of them. Memory grows with what there is, never with what a header says.
    pub(super) fn unfold(self, folded: &[u8], n: usize) -> Result<Vec<u8>, String> {
        let bytes = match self {
            Self::Plain => folded.to_vec(),
            Self::Snappy => snappy(folded, n)?,
            Self::Gzip => {
                let mut bytes = Vec::new();
                let decoder = flate2::read::MultiGzDecoder::new(folded);
                (decoder.take(n as u64 + 1).read_to_end(&mut bytes))
                    .map_err(|error| format!("its gzip data are damaged: {error}"))?;
                bytes
            }
            Self::Lz4Block => {
                // No more than this can come out of a block.
                if n / 255 > folded.len() {
                    return Err("its LZ4 data are shorter than they say".into());
                }
                lz4_flex::block::decompress(folded, n)
                    .map_err(|error| format!("its LZ4 data are damaged: {error}"))?
            }
        };
        match bytes.len() == n {
            true => Ok(bytes),
            false => Err(format!(
                "it has other than the {n} bytes that its header says"
            )),
        }
    }
}

/// Snappy's raw form, <https://github.com/google/snappy/blob/main/format_description.txt>.
fn snappy(folded: &[u8], n: usize) -> Result<Vec<u8>, String> {
    let damaged = || "its snappy data are damaged".to_owned();
    let mut at = 0_usize;
    let mut next = |n_bytes: usize| -> Option<&[u8]> {
        let bytes = folded.get(at..at.checked_add(n_bytes)?)?;
        at += n_bytes;
        Some(bytes)
    };
    let little = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0_usize, |number, &byte| number << 8 | usize::from(byte))
    };
    let mut said = 0_usize;
    for shift in (0..35).step_by(7) {
        let byte = next(1).ok_or_else(damaged)?[0];
        said |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if said != n {
        return Err(format!(
            "its snappy data are of {said} bytes, its header says {n}"
        ));
    }
    // A copy of 64 bytes takes three.
    let mut bytes = Vec::with_capacity(n.min(folded.len().saturating_mul(22)));
    while bytes.len() < n {
        let tag = usize::from(next(1).ok_or_else(damaged)?[0]);
        let length = tag >> 2;
        let (length, back) = match tag & 3 {
            0 => {
                let length = match length {
                    0..60 => length,
                    long => little(next(long - 59).ok_or_else(damaged)?),
                };
                let literal = next(length + 1).ok_or_else(damaged)?;
                bytes.extend_from_slice(literal);
                continue;
            }
            1 => {
                let low = usize::from(next(1).ok_or_else(damaged)?[0]);
                ((length & 7) + 4, (tag >> 5) << 8 | low)
            }
            2 => (length + 1, little(next(2).ok_or_else(damaged)?)),
            _ => (length + 1, little(next(4).ok_or_else(damaged)?)),
        };
        let start = bytes.len().checked_sub(back).filter(|_| back > 0);
        let start = start.ok_or_else(damaged)?;
        if length > n - bytes.len() {
            return Err(damaged());
        }
        match back >= length {
            true => bytes.extend_from_within(start..start + length),
            // The copy reads what it writes.
            false => (start..start + length).for_each(|from| bytes.push(bytes[from])),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snappy_copies_literals_and_earlier_bytes() {
        // 9 bytes: the literal "abc", then six bytes from three back, which overlap.
        let folded = [9, 2 << 2, b'a', b'b', b'c', (2 << 2) | 1, 3];
        assert_eq!(
            Codec::Snappy.unfold(&folded, 9).expect("bytes"),
            b"abcabcabc"
        );
        // The same with offsets of two and four bytes.
        let folded = [9, 2 << 2, b'a', b'b', b'c', (5 << 2) | 2, 3, 0];
        assert_eq!(
            Codec::Snappy.unfold(&folded, 9).expect("bytes"),
            b"abcabcabc"
        );
        let folded = [9, 2 << 2, b'a', b'b', b'c', (5 << 2) | 3, 3, 0, 0, 0];
        assert_eq!(
            Codec::Snappy.unfold(&folded, 9).expect("bytes"),
            b"abcabcabc"
        );
        for damaged in [
            // Another length; before the beginning; no step back; too much; the end missing.
            &[8, 2 << 2, b'a', b'b', b'c', (5 << 2) | 2, 3, 0][..],
            &[9, 2 << 2, b'a', b'b', b'c', (5 << 2) | 2, 4, 0],
            &[9, 2 << 2, b'a', b'b', b'c', (5 << 2) | 2, 0, 0],
            &[9, 2 << 2, b'a', b'b', b'c', (6 << 2) | 2, 3, 0],
            &[9, 2 << 2, b'a', b'b'],
            &[9],
            &[],
        ] {
            assert!(Codec::Snappy.unfold(damaged, 9).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn a_page_that_says_too_much_takes_no_memory() {
        for codec in [Codec::Plain, Codec::Snappy, Codec::Gzip, Codec::Lz4Block] {
            assert!(codec.unfold(&[0; 16], usize::MAX / 2).is_err(), "{codec:?}");
        }
    }
}
