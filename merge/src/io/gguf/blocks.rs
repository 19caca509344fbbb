//! Blocks of codes, as the numbers that they stand for: one block at a time, in f32.
//!
//! Every function does the operations of ggml's `dequantize_row_*` in their order, so that results are the same bits as
//! those of ggml without fused multiplication, and of gguf-py. Blocks with `_k` have 256 elements, the others 32.
//!
//! Source: the structs `block_*` of ggml's `ggml-common.h`.

use half::f16;

/// Writes the elements of a block, whose bytes and elements are as many as the type's.
pub(crate) type Decode = fn(&[u8], &mut [f32]);

/// Elements of a short block, and of half of it.
const SHORT: usize = 32;
const HALF: usize = SHORT / 2;

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `(q − 8) d`: `d` in f16, then codes of four bits, element `j` in the low and `j + 16` in the high half of byte `j`.
pub(crate) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (j, &byte) in block[2..2 + HALF].iter().enumerate() {
        out[j] = (f32::from(byte & 15) - 8.0) * d;
        out[j + HALF] = (f32::from(byte >> 4) - 8.0) * d;
    }
}

/// `q d + m`: `d` and `m` in f16, codes as in `Q4_0`.
pub(crate) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &byte) in block[4..4 + HALF].iter().enumerate() {
        out[j] = f32::from(byte & 15) * d + m;
        out[j + HALF] = f32::from(byte >> 4) * d + m;
    }
}

/// The codes of five bits of a block: fifth bits in four bytes, then the others as in `Q4_0`.
fn fives(bytes: &[u8]) -> [u8; SHORT] {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let bit = |j: usize| ((fifth >> j & 1) as u8) << 4;
    let mut codes = [0; SHORT];
    for (j, &byte) in bytes[4..4 + HALF].iter().enumerate() {
        codes[j] = byte & 15 | bit(j);
        codes[j + HALF] = byte >> 4 | bit(j + HALF);
    }
    codes
}

/// `(q − 16) d`, codes of five bits.
pub(crate) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, code) in out.iter_mut().zip(fives(&block[2..])) {
        *value = (f32::from(code) - 16.0) * d;
    }
}

/// `q d + m`, codes of five bits.
pub(crate) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (value, code) in out.iter_mut().zip(fives(&block[4..])) {
        *value = f32::from(code) * d + m;
    }
}

/// `q d`: `d` in f16, then signed bytes.
pub(crate) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, &code) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(code as i8) * d;
    }
}

/// `q (d s) − (d' m)`: scales and minima of four bits for 16 elements each, codes of two bits, `d` and `d'` in f16.
pub(crate) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, least) = (half_at(block, 80), half_at(block, 82));
    for (run, part) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[run] & 15);
        let minimum = least * f32::from(scales[run] >> 4);
        let (from, shift) = twos(run);
        for (value, code) in part.iter_mut().zip(&codes[from..from + 16]) {
            *value = scale * f32::from(code >> shift & 3) - minimum;
        }
    }
}

/// Of run `run` of 16 codes of two bits: the first of its bytes, and the bits that they stand on. Half of a block has 32
/// bytes, whose lowest two bits are its first 32 elements, and so on.
const fn twos(run: usize) -> (usize, usize) {
    (run / 8 * 32 + run % 2 * 16, run % 8 / 2 * 2)
}

/// `q (d s)`: third bits in 32 bytes, of which a missing one takes four away; codes of two bits; scales of six bits, less
/// 32, for 16 elements each; `d` in f16.
pub(crate) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (run, part) in out.chunks_exact_mut(16).enumerate() {
        let low = match run {
            0..8 => packed[run] & 15,
            _ => packed[run - 8] >> 4,
        };
        let high = packed[8 + run % 4] >> (run / 4 * 2) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        let ((from, shift), bit, start) = (twos(run), run / 2, run % 2 * 16);
        let runs = codes[from..from + 16].iter().zip(&third[start..start + 16]);
        for (value, (code, high)) in part.iter_mut().zip(runs) {
            let taken = (high >> bit & 1 ^ 1) << 2;
            *value = scale * f32::from((code >> shift & 3) as i8 - taken as i8);
        }
    }
}

/// Scale and minimum `group` of eight each, of six bits, packed in twelve bytes.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

/// `q (d s) − (d' m)`: `d` and `d'` in f16, scales and minima of six bits for 32 elements each, codes of four bits.
pub(crate) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..144]);
    for (group, part) in out.chunks_exact_mut(SHORT).enumerate() {
        let (scale, minimum) = six_bits(packed, group);
        let (scale, minimum) = (d * scale, least * minimum);
        let (from, shift) = (group / 2 * SHORT, group % 2 * 4);
        for (value, code) in part.iter_mut().zip(&codes[from..from + SHORT]) {
            *value = scale * f32::from(code >> shift & 15) - minimum;
        }
    }
}

/// As `Q4_K`, with fifth bits in 32 bytes between the scales and the codes.
pub(crate) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..176]);
    for (group, part) in out.chunks_exact_mut(SHORT).enumerate() {
        let (scale, minimum) = six_bits(packed, group);
        let (scale, minimum) = (d * scale, least * minimum);
        let (from, shift) = (group / 2 * SHORT, group % 2 * 4);
        let runs = codes[from..from + SHORT].iter().zip(fifth);
        for (value, (code, high)) in part.iter_mut().zip(runs) {
            let code = code >> shift & 15 | (high >> group & 1) << 4;
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// `q (d s)`: codes of six bits, less 32, the lower four in 128 and the upper two in 64 bytes; signed scales of eight bits
/// for 16 elements each; `d` in f16.
pub(crate) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lower, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (run, part) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[run] as i8);
        // Of half a block: four quarters of 32 elements.
        let (half, quarter, start) = (run / 8, run % 8 / 2, run % 2 * 16);
        let low = half * 64 + quarter % 2 * 32 + start;
        let high = half * 32 + start;
        let runs = lower[low..low + 16].iter().zip(&upper[high..high + 16]);
        for (value, (low, high)) in part.iter_mut().zip(runs) {
            let code = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            *value = scale * f32::from(code as i8 - 32);
        }
    }
}

/// `q d`: `d` in f32, then signed bytes, then sums that only products of matrices use.
pub(crate) fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (value, &code) in out.iter_mut().zip(&block[4..260]) {
        *value = f32::from(code as i8) * d;
    }
}

/// The numbers of the codes of `IQ4_NL` and `IQ4_XS`, of which there are more near zero.
const NOT_LINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the numbers of a float of four bits, two of them for the exponent.
const TWICE_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `table[q] d` of 32 codes of four bits, laid out as in `Q4_0`.
fn looked_up(table: &[i8; 16], d: f32, codes: &[u8], out: &mut [f32]) {
    for (j, &byte) in codes[..HALF].iter().enumerate() {
        out[j] = d * f32::from(table[usize::from(byte & 15)]);
        out[j + HALF] = d * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// `t(q) d`: `d` in f16, codes of four bits that stand for numbers of a table.
pub(crate) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    looked_up(&NOT_LINEAR, half_at(block, 0), &block[2..], out);
}

/// `t(q) (d s)`: `d` in f16; scales of six bits, less 32, for 32 elements each, the upper two bits of all in two bytes, the
/// lower four in four; codes as in `IQ4_NL`.
pub(crate) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    let upper = u16::from_le_bytes([block[2], block[3]]);
    let (lower, codes) = (&block[4..8], &block[8..136]);
    for (group, part) in out.chunks_exact_mut(SHORT).enumerate() {
        let low = lower[group / 2] >> (group % 2 * 4) & 15;
        let high = (upper >> (2 * group) & 3) as u8;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        looked_up(&NOT_LINEAR, scale, &codes[group * HALF..], part);
    }
}

/// `t(q) 2^(e − 128)`: `e` in a byte, codes of four bits that are floats, of which the table has twice the numbers.
pub(crate) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let exponent = u32::from(block[0]);
    let half_power = f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => (exponent - 1) << 23,
    });
    looked_up(&TWICE_E2M1, half_power, &block[1..], out);
}

/// `(q − 1) d`: digits of base three, five of them in a byte as a share of 243 in 256, four in each of the last; `d` in f16.
pub(crate) fn tq1_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 52);
    let mut values = out.iter_mut();
    for (bytes, n_digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        let mut power = 1u8;
        for _ in 0..n_digits {
            for (&byte, value) in bytes.iter().zip(values.by_ref()) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *value = d * (f32::from(digit) - 1.0);
            }
            power *= 3;
        }
    }
}

/// `(q − 1) d`: codes of two bits, `d` in f16 behind them.
pub(crate) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 64);
    for (run, part) in out.chunks_exact_mut(SHORT).enumerate() {
        let (from, shift) = (run / 4 * SHORT, run % 4 * 2);
        for (value, code) in part.iter_mut().zip(&block[from..from + SHORT]) {
            *value = d * (f32::from(code >> shift & 3) - 1.0);
        }
    }
}

/// Elements of a block of `Q8_0`, and its bytes.
pub(crate) const Q8_0_ELEMENTS: usize = 32;
pub(crate) const Q8_0_BYTES: usize = 34;

/// The block of `Q8_0` of 32 elements: codes are rounded, halves away from zero, by a scale in f32 that is stored in f16.
/// `None` where an element is not finite, or too large for a scale in f16.
///
/// Source: gguf-py's `Q8_0.quantize_blocks`, ggml's `quantize_row_q8_0_ref`.
pub(crate) fn to_q8_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let largest = values
        .iter()
        .fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = largest / 127.0;
    let stored = f16::from_f32(scale);
    if !stored.is_finite() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let inverse = match scale == 0.0 {
        true => 0.0,
        false => 1.0 / scale,
    };
    out[..2].copy_from_slice(&stored.to_le_bytes());
    for (code, value) in out[2..Q8_0_BYTES].iter_mut().zip(values) {
        *code = (value * inverse).round() as i8 as u8;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_short_blocks_lie_in_halves_of_bytes() {
        // d = 0.5; byte 0 holds elements 0 and 16.
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0xF1;
        let mut out = [9.0; 32];
        q4_0(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (-3.5, 3.5, 0.0));
    }

    #[test]
    fn codes_of_tables_and_digits_are_their_numbers() {
        let mut out = [9.0; 256];
        // The exponent of 1 is 127; halves of bytes are 6.0 and −0.5.
        let mut block = [0; 17];
        (block[0], block[1]) = (127, 0x97);
        mxfp4(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (6.0, -0.5, 0.0));
        block[0] = 0;
        mxfp4(&block, &mut out);
        assert_eq!(out[0], 12.0 * 2f32.powi(-128));
        let mut block = [0; 18];
        block[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        block[2] = 0x8f;
        iq4_nl(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (226.0, 2.0, -254.0));
        // Digits 2, 0, 1, 1, 2 are 176 of 243: 186 of 256, rounded up.
        let mut block = [0; 54];
        block[0] = 186;
        block[52..].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        tq1_0(&block, &mut out);
        let digits = [0, 32, 64, 96, 128].map(|at: usize| out[at]);
        assert_eq!(digits, [0.5, -0.5, 0.0, 0.0, 0.5]);
    }

    #[test]
    fn a_block_of_q8_0_comes_back_within_half_a_step() {
        let values: Vec<f32> = (0..32).map(|n| (n as f32 - 11.0) * 0.37).collect();
        let mut block = [0; Q8_0_BYTES];
        to_q8_0(&values, &mut block).expect("finite");
        let mut back = [0.0; 32];
        q8_0(&block, &mut back);
        let step = 20.0 * 0.37 / 127.0;
        for (value, back) in values.iter().zip(back) {
            assert!((value - back).abs() <= 0.51 * step, "{value} {back}");
        }
        let mut zeros = [1; Q8_0_BYTES];
        to_q8_0(&[0.0; 32], &mut zeros).expect("finite");
        assert_eq!(zeros, [0; Q8_0_BYTES]);
    }

    #[test]
    fn what_a_scale_cannot_hold_is_no_block() {
        let mut block = [0; Q8_0_BYTES];
        for value in [f32::NAN, f32::INFINITY, 1e8] {
            let mut values = [0.0; 32];
            values[7] = value;
            assert!(to_q8_0(&values, &mut block).is_none(), "{value}");
        }
    }
}
