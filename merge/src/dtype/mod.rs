//! Element types, and rows of them to and from `f32` and `f64`.

mod small;

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

pub(crate) use small::{e2m1_to_f32, e8m0_to_f32, f8_e4m3_to_f32};

use crate::{Error, Result};

/// The type of a tensor's elements. Names are those of the safetensors format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the format's own and say it all")]
pub enum DType {
    #[serde(rename = "BOOL")]
    Bool,
    F4,
    #[serde(rename = "F6_E2M3")]
    F6E2M3,
    #[serde(rename = "F6_E3M2")]
    F6E3M2,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    #[serde(rename = "F8_E8M0")]
    F8E8M0,
    #[serde(rename = "F8_E4M3FNUZ")]
    F8E4M3Fnuz,
    #[serde(rename = "F8_E5M2FNUZ")]
    F8E5M2Fnuz,
    F16,
    BF16,
    F32,
    F64,
    C64,
}

impl DType {
    /// Every dtype, in the order of the variants.
    pub const ALL: [Self; 22] = [
        Self::Bool,
        Self::F4,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F8E8M0,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
        Self::C64,
    ];

    /// The name in a safetensors header, e.g. `BF16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::F4 => "F4",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::C64 => "C64",
        }
    }

    /// The dtype with this safetensors name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bits of one element.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::Bool | Self::U8 | Self::I8 => 8,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 => 8,
            Self::F8E4M3Fnuz | Self::F8E5M2Fnuz => 8,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 16,
            Self::U32 | Self::I32 | Self::F32 => 32,
            Self::U64 | Self::I64 | Self::F64 | Self::C64 => 64,
        }
    }

    /// Bytes of one element. Types of fewer bits than a byte share bytes: [`DType::bytes_of`] counts
    /// those, and here they have one.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        self.bits().div_ceil(8)
    }

    /// Bytes of `n_elements` elements that begin with a byte. Four elements always fill whole bytes.
    #[must_use]
    pub const fn bytes_of(self, n_elements: usize) -> usize {
        match self.bits() {
            bits @ (4 | 6) => (n_elements / 4 * (bits / 2)) + (n_elements % 4 * bits).div_ceil(8),
            bits => n_elements * (bits / 8),
        }
    }

    /// Whether merge methods may do arithmetic on it. Scales (F8_E8M0), types that share bytes and
    /// complex numbers are opened, compared and copied.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::F8E4M3
                | Self::F8E5M2
                | Self::F8E4M3Fnuz
                | Self::F8E5M2Fnuz
                | Self::F16
                | Self::BF16
                | Self::F32
                | Self::F64
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Converts little-endian elements of `dtype` to `f32`; exact for every dtype of at most 24
/// significant bits, rounded once otherwise.
///
/// # Errors
/// [`Error::UnsupportedCast`] (naming `key`) for booleans and complex numbers.
///
/// # Panics
/// When `bytes` and `out` differ in their number of elements: a fault of the caller.
pub fn decode_f32(key: &str, dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    assert_eq!(
        bytes.len(),
        dtype.bytes_of(out.len()),
        "one output per element"
    );
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
        DType::F16 => with_aligned(bytes, |from: &[f16]| from.convert_to_f32_slice(out)),
        DType::BF16 => each(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        DType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        DType::F8E4M3 => each(bytes, out, |[b]| f8_e4m3_to_f32(b)),
        DType::F8E5M2 => each(bytes, out, |[b]| small::f8_e5m2_to_f32(b)),
        DType::F8E8M0 => each(bytes, out, |[b]| e8m0_to_f32(b)),
        DType::F8E4M3Fnuz => each(bytes, out, |[b]| small::f8_e4m3fnuz_to_f32(b)),
        DType::F8E5M2Fnuz => each(bytes, out, |[b]| small::f8_e5m2fnuz_to_f32(b)),
        DType::F4 | DType::F6E2M3 | DType::F6E3M2 => small::unpack(dtype, bytes, out),
        DType::U8 => each(bytes, out, |[b]| f32::from(b)),
        DType::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        DType::U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        DType::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        DType::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        DType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        DType::Bool | DType::C64 => return Err(unsupported(key, dtype, DType::F32)),
    }
    Ok(())
}

/// Converts little-endian elements of `dtype` to `f64`; exact except for integers beyond 2⁵³.
///
/// # Errors
/// [`Error::UnsupportedCast`] (naming `key`) for booleans and complex numbers.
///
/// # Panics
/// When `bytes` and `out` differ in their number of elements: a fault of the caller.
pub fn decode_f64(key: &str, dtype: DType, bytes: &[u8], out: &mut [f64]) -> Result<()> {
    assert_eq!(
        bytes.len(),
        dtype.bytes_of(out.len()),
        "one output per element"
    );
    match dtype {
        DType::F64 => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
        DType::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f64()),
        DType::F8E4M3
        | DType::F8E5M2
        | DType::F8E8M0
        | DType::F8E4M3Fnuz
        | DType::F8E5M2Fnuz
        | DType::F4
        | DType::F6E2M3
        | DType::F6E3M2 => {
            let mut single = vec![0.0; out.len()];
            decode_f32(key, dtype, bytes, &mut single)?;
            for (out, value) in out.iter_mut().zip(single) {
                *out = f64::from(value);
            }
        }
        DType::U8 => each(bytes, out, |[b]| f64::from(b)),
        DType::I8 => each(bytes, out, |b| f64::from(i8::from_le_bytes(b))),
        DType::U16 => each(bytes, out, |b| f64::from(u16::from_le_bytes(b))),
        DType::I16 => each(bytes, out, |b| f64::from(i16::from_le_bytes(b))),
        DType::U32 => each(bytes, out, |b| f64::from(u32::from_le_bytes(b))),
        DType::I32 => each(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        DType::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f64),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        DType::Bool | DType::C64 => return Err(unsupported(key, dtype, DType::F64)),
    }
    Ok(())
}

/// Rounds `f32` to little-endian elements of `dtype`, once, to nearest, ties to even.
///
/// # Errors
/// [`Error::UnsupportedCast`] (naming `key`) for dtypes that hold no rounded floats.
///
/// # Panics
/// When `values` and `out` differ in their number of elements: a fault of the caller.
pub fn encode_f32(key: &str, dtype: DType, values: &[f32], out: &mut [u8]) -> Result<()> {
    assert_eq!(
        out.len(),
        values.len() * dtype.size_bytes(),
        "one element per value"
    );
    match dtype {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        DType::F64 => put(values, out, |v| f64::from(v).to_le_bytes()),
        DType::F16 => with_aligned_mut::<f16>(out, |to| to.convert_from_f32_slice(values)),
        DType::BF16 => put(values, out, f32_to_bf16),
        _ => return Err(unsupported(key, DType::F32, dtype)),
    }
    Ok(())
}

/// Rounds `f64` to little-endian elements of `dtype`, once, to nearest, ties to even. Integers
/// are written exactly when the value is one.
///
/// # Errors
/// [`Error::UnsupportedCast`] (naming `key`) for other dtypes.
///
/// # Panics
/// When `values` and `out` differ in their number of elements: a fault of the caller.
pub fn encode_f64(key: &str, dtype: DType, values: &[f64], out: &mut [u8]) -> Result<()> {
    assert_eq!(
        out.len(),
        values.len() * dtype.size_bytes(),
        "one element per value"
    );
    match dtype {
        DType::F64 => out.copy_from_slice(bytemuck::cast_slice(values)),
        DType::F32 => put(values, out, |v| (v as f32).to_le_bytes()),
        // `from_f64` of the crate half looks at the upper half of the number alone, and takes a number just beyond a tie
        // for one.
        DType::F16 => put(values, out, |v| f16::from_f32(to_odd(v)).to_le_bytes()),
        DType::BF16 => put(values, out, |v| f32_to_bf16(to_odd(v))),
        DType::I64 if values.iter().all(|v| v.fract() == 0.0) => {
            put(values, out, |v| (v as i64).to_le_bytes());
        }
        _ => return Err(unsupported(key, DType::F64, dtype)),
    }
    Ok(())
}

fn unsupported(key: &str, dtype: DType, wanted: DType) -> Error {
    Error::UnsupportedCast {
        key: key.to_owned(),
        dtype,
        wanted,
    }
}

/// Decodes element by element, with the widest vectors of the processor at hand.
fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], decode: impl Fn([u8; N]) -> T) {
    crate::vectorized(
        #[inline(always)]
        || {
            let (elements, _) = bytes.as_chunks::<N>();
            for (to, from) in out.iter_mut().zip(elements) {
                *to = decode(*from);
            }
        },
    );
}

/// Encodes element by element, likewise.
fn put<const N: usize, T: Copy>(values: &[T], out: &mut [u8], encode: impl Fn(T) -> [u8; N]) {
    crate::vectorized(
        #[inline(always)]
        || {
            let (elements, _) = out.as_chunks_mut::<N>();
            for (to, from) in elements.iter_mut().zip(values) {
                *to = encode(*from);
            }
        },
    );
}

/// The upper half of an f32, written without branches so that it becomes vector instructions.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest, ties to even, likewise; a NaN stays one.
#[inline(always)]
fn f32_to_bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    let kept = if value.is_nan() { quiet } else { rounded };
    (kept as u16).to_le_bytes()
}

/// Rounds to the one of the two nearest f32 whose last bit is set, unless the value is one: a number that is rounded once more, to
/// fewer bits, is then as if it had been rounded once.
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let single = value as f32;
    let back = f64::from(single);
    let bits = single.to_bits();
    if back == value || value.is_nan() || bits & 1 == 1 {
        return single;
    }
    // Bits of floats grow with their distance from zero.
    f32::from_bits(match back.abs() < value.abs() {
        true => bits + 1,
        false => bits - 1,
    })
}

/// Sees bytes as elements; copies them only if they are not aligned.
pub(crate) fn with_aligned<T: bytemuck::Pod, R>(bytes: &[u8], body: impl FnOnce(&[T]) -> R) -> R {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) => body(elements),
        Err(_) => body(&bytemuck::allocation::pod_collect_to_vec::<u8, T>(bytes)),
    }
}

/// Sees bytes as elements to be written; goes through a copy only if they are not aligned.
fn with_aligned_mut<T: bytemuck::Pod>(bytes: &mut [u8], body: impl FnOnce(&mut [T])) {
    if let Ok(elements) = bytemuck::try_cast_slice_mut(bytes) {
        return body(elements);
    }
    let mut elements = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    body(&mut elements);
    bytes.copy_from_slice(bytemuck::cast_slice(&elements));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_survives_f32_and_f64() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        for dtype in [DType::F16, DType::BF16] {
            let is_nan = |b: u16| match dtype {
                DType::F16 => f16::from_bits(b).is_nan(),
                _ => bf16::from_bits(b).is_nan(),
            };
            let (mut single, mut double) = (vec![0f32; bits.len()], vec![0f64; bits.len()]);
            decode_f32("x", dtype, &bytes, &mut single).expect("supported");
            decode_f64("x", dtype, &bytes, &mut double).expect("supported");
            let (mut back, mut back64) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            encode_f32("x", dtype, &single, &mut back).expect("supported");
            encode_f64("x", dtype, &double, &mut back64).expect("supported");
            for (index, &b) in bits.iter().enumerate().filter(|&(_, &b)| !is_nan(b)) {
                let at = index * 2..index * 2 + 2;
                assert_eq!(back[at.clone()], b.to_le_bytes());
                assert_eq!(back64[at], b.to_le_bytes());
            }
        }
    }

    #[test]
    fn bf16_is_rounded_as_the_half_crate_rounds() {
        // Every upper half with lower halves around the tie, and every kind of NaN among them.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(
                    f32_to_bf16(value),
                    bf16::from_f32(value).to_le_bytes(),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn what_is_just_beyond_a_tie_is_rounded_away_from_it() {
        // The tie between two neighbors, exactly, and off by the least that an f32 and an f64 can say.
        let rounded = |dtype: DType, value: f64| {
            let mut out = [0; 2];
            encode_f64("x", dtype, &[value], &mut out).expect("supported");
            u16::from_le_bytes(out)
        };
        for sign in [1.0, -1.0] {
            let bits = if sign < 0.0 { 0x8000 } else { 0 };
            for (dtype, half) in [(DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))] {
                let one = rounded(dtype, 1.0);
                for (off, up) in [
                    (0.0, 0),
                    (2f64.powi(-22), 1),
                    (2f64.powi(-50), 1),
                    (-2f64.powi(-50), 0),
                ] {
                    let found = rounded(dtype, sign * (1.0 + half + off));
                    assert_eq!(found, bits | (one + up), "{dtype:?} {off}");
                    // An odd neighbor below: the tie goes up.
                    let found = rounded(dtype, sign * (1.0 + 3.0 * half + off));
                    let up = if off < 0.0 { 1 } else { 2 };
                    assert_eq!(found, bits | (one + up), "{dtype:?} {off}");
                }
            }
        }
        assert_eq!(rounded(DType::BF16, 1e300), 0x7f80);
        assert_eq!(rounded(DType::BF16, -1e-300), 0x8000);
        assert_eq!(rounded(DType::BF16, f64::INFINITY), 0x7f80);
        assert!(bf16::from_bits(rounded(DType::BF16, f64::NAN)).is_nan());
        // A value of an f32 that was written as 0x3eac.
        assert_eq!(
            rounded(DType::BF16, f64::from(f32::from_bits(0x3eac_8002))),
            0x3ead
        );
    }

    #[test]
    fn unaligned_bytes_decode_like_aligned_ones() {
        let bytes = [0u8, 0x80, 0x3f, 0x00, 0xc0];
        let mut out = [0f32; 2];
        decode_f32("x", DType::BF16, &bytes[1..], &mut out).expect("supported");
        assert_eq!(out, [1.0, -2.0]);
    }

    #[test]
    fn a_boolean_is_no_number() {
        let error = decode_f32("mask", DType::Bool, &[1], &mut [0.0]).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "`mask` has dtype BOOL, which cannot be converted to F32"
        );
    }
}
