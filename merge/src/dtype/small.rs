//! Floats of eight bits and fewer, of which every pattern has an exact `f32`.

use super::DType;

/// Sign, exponent and mantissa of a format, as a function of the pattern: `exponent_bits` and
/// `mantissa_bits` wide, the exponent offset by `bias`. Knows neither infinities nor NaNs.
const fn finite(pattern: u8, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
    let sign = (pattern >> (exponent_bits + mantissa_bits)) & 1;
    let exponent = ((pattern >> mantissa_bits) as u32 & ((1 << exponent_bits) - 1)) as i32;
    let mantissa = pattern as u32 & ((1 << mantissa_bits) - 1);
    // Subnormals have the exponent of the smallest normal and no leading one.
    let (leading, exponent) = match exponent {
        0 => (0, 1),
        _ => (1 << mantissa_bits, exponent),
    };
    let scale = power_of_two(exponent - bias - mantissa_bits as i32);
    let magnitude = (leading + mantissa) as f32 * scale;
    match sign {
        0 => magnitude,
        _ => -magnitude,
    }
}

/// 2 to the power of `exponent`, from −126 to 127.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// All values of a format.
const fn table(exponent_bits: u32, mantissa_bits: u32, bias: i32) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut pattern = 0;
    while pattern < 256 {
        values[pattern] = finite(pattern as u8, exponent_bits, mantissa_bits, bias);
        pattern += 1;
    }
    values
}

/// With patterns that are no numbers, or infinite.
const fn with(mut values: [f32; 256], patterns: &[u8], value: f32) -> [f32; 256] {
    let mut index = 0;
    while index < patterns.len() {
        values[patterns[index] as usize] = value;
        index += 1;
    }
    values
}

/// The "FN" form of OCP 8-bit floating point, section 5.2: no infinities.
static E4M3: [f32; 256] = with(table(4, 3, 7), &[0x7f, 0xff], f32::NAN);
/// IEEE 1-5-2.
static E5M2: [f32; 256] = with(
    with(
        with(
            table(5, 2, 15),
            &[0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff],
            f32::NAN,
        ),
        &[0x7c],
        f32::INFINITY,
    ),
    &[0xfc],
    f32::NEG_INFINITY,
);
/// Without infinities and a negative zero, whose pattern is the one NaN (Noune et al. 2022, arXiv
/// 2206.02915).
static E4M3FNUZ: [f32; 256] = with(table(4, 3, 8), &[0x80], f32::NAN);
static E5M2FNUZ: [f32; 256] = with(table(5, 2, 16), &[0x80], f32::NAN);
/// OCP microscaling formats 1.0, section 5.3.3: no infinities, no NaN.
static E2M1: [f32; 256] = table(2, 1, 1);

/// F8_E4M3.
#[inline(always)]
pub(crate) fn f8_e4m3_to_f32(bits: u8) -> f32 {
    E4M3[bits as usize]
}

/// F8_E5M2.
#[inline(always)]
pub(super) fn f8_e5m2_to_f32(bits: u8) -> f32 {
    E5M2[bits as usize]
}

/// F8_E4M3FNUZ.
#[inline(always)]
pub(super) fn f8_e4m3fnuz_to_f32(bits: u8) -> f32 {
    E4M3FNUZ[bits as usize]
}

/// F8_E5M2FNUZ.
#[inline(always)]
pub(super) fn f8_e5m2fnuz_to_f32(bits: u8) -> f32 {
    E5M2FNUZ[bits as usize]
}

/// An exponent without sign and mantissa: 2 to the power of `bits` − 127, NaN if all bits are set (OCP
/// microscaling formats 1.0, section 5.4.1).
#[inline(always)]
pub(crate) fn e8m0_to_f32(bits: u8) -> f32 {
    match bits {
        0xff => f32::NAN,
        // A subnormal of f32.
        0 => f32::from_bits(1 << 22),
        bits => f32::from_bits(u32::from(bits) << 23),
    }
}

/// The lower four bits as 1-2-1.
#[inline(always)]
pub(crate) fn e2m1_to_f32(bits: u8) -> f32 {
    E2M1[(bits & 0xf) as usize]
}

/// Elements that share bytes, the first in the lowest bits.
pub(super) fn unpack(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let bits = dtype.bits();
    for (index, out) in out.iter_mut().enumerate() {
        let first = index * bits;
        let low = u16::from(bytes[first / 8]);
        let high = bytes.get(first / 8 + 1).map_or(0, |&byte| u16::from(byte));
        let pattern = ((high << 8 | low) >> (first % 8)) as u8;
        *out = match dtype {
            DType::F4 => e2m1_to_f32(pattern),
            DType::F6E2M3 => finite(pattern & 0x3f, 2, 3, 1),
            _ => finite(pattern & 0x3f, 3, 2, 3),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_have_their_published_extremes() {
        // OCP 8-bit floating point, table 1: largest normal and smallest subnormal.
        assert_eq!(f8_e4m3_to_f32(0x7e), 448.0);
        assert_eq!(f8_e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(f8_e4m3_to_f32(0x80).to_bits(), (-0.0f32).to_bits());
        assert!(f8_e4m3_to_f32(0x7f).is_nan());
        assert_eq!(f8_e5m2_to_f32(0x7b), 57344.0);
        assert_eq!(f8_e5m2_to_f32(0x01), 2f32.powi(-16));
        assert_eq!(f8_e5m2_to_f32(0xfc), f32::NEG_INFINITY);
        assert!(f8_e5m2_to_f32(0xfd).is_nan());
        // arXiv 2206.02915: one more power of two below, NaN in place of −0.
        assert_eq!(f8_e4m3fnuz_to_f32(0x7f), 240.0);
        assert_eq!(f8_e5m2fnuz_to_f32(0x7f), 57344.0);
        assert!(f8_e4m3fnuz_to_f32(0x80).is_nan());
        // OCP microscaling formats 1.0, tables 2 to 5 and 7.
        assert_eq!(e8m0_to_f32(127), 1.0);
        assert_eq!(e8m0_to_f32(0), 2f32.powi(-127));
        assert_eq!(e8m0_to_f32(254), 2f32.powi(127));
        assert!(e8m0_to_f32(255).is_nan());
        let fours: Vec<f32> = (0..16).map(e2m1_to_f32).collect();
        assert_eq!(fours[..8], [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(fours[9..], [-0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]);
        let mut sixes = [0.0; 4];
        // 0x1f, 0x01, 0x3f, 0x08, six bits each from the lowest on.
        unpack(DType::F6E2M3, &[0x5f, 0xf0, 0x23], &mut sixes);
        assert_eq!(sixes, [7.5, 0.125, -7.5, 1.0]);
        unpack(DType::F6E3M2, &[0x5f, 0xf0, 0x23], &mut sixes);
        assert_eq!(sixes, [28.0, 0.0625, -28.0, 0.5]);
    }

    #[test]
    fn elements_that_share_bytes_are_counted_in_bits() {
        let bytes = |dtype: DType| [0, 2, 4, 64].map(|n| dtype.bytes_of(n));
        assert_eq!(bytes(DType::F4), [0, 1, 2, 32]);
        assert_eq!(bytes(DType::F6E2M3), [0, 2, 3, 48]);
        assert_eq!(bytes(DType::F32), [0, 8, 16, 256]);
    }
}
