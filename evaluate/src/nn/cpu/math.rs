//! Exponential and error function in f32, written so that compilers turn loops over them into
//! vector instructions; sums in a fixed order of lanes.

/// Lanes of sums and maxima: two vectors of AVX-512's width.
pub const LANES: usize = 32;

/// 1 / sqrt(2 π).
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// eˣ to within two units in the last place; 0 below −87, as if denormal numbers were none; NaN of NaN.
///
/// x = k ln 2 + r with |r| ≤ ln 2 / 2; eʳ by its Taylor polynomial of degree 7, whose remainder is
/// below 10⁻⁸.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to the nearest integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, so that the product with a small integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = clamped - k * LN_2_HIGH - k * LN_2_LOW;
    let mut power = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        power = power * r + coefficient;
    }
    let scaled = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    let value = if x < -87.0 { 0.0 } else { scaled };
    // The low bits of a NaN are no power of two: shifted, they would make a number of it.
    if x.is_nan() { x } else { value }
}

/// The normal distribution's Φ(x) and density φ(x).
///
/// Φ by formula 7.1.26 of Abramowitz and Stegun 1964, *Handbook of Mathematical Functions*, whose
/// error is below 1.5 · 10⁻⁷; it shares its exponential with φ.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut tail = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        tail = tail * t + coefficient;
    }
    let half_tail = 0.5 * tail * t * bell;
    let below = if x < 0.0 { half_tail } else { 1.0 - half_tail };
    (below, DENSITY_AT_ZERO * bell)
}

/// The sum of `f(a, b)` over two slices of one length, in a fixed order.
#[inline(always)]
pub fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[lane] += f(a, b);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest of a slice, NaN skipped; −∞ of none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] = larger(values[lane], lanes[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        lanes[lane] = larger(value, lanes[lane]);
    }
    fold(lanes, larger)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let (found, expected) = (exp(x), f64::from(x).exp());
            let error = (f64::from(found) - expected).abs() / expected;
            assert!(error < 2.4e-7, "exp({x}) = {found}, not {expected}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn no_bits_of_a_nan_become_a_number() {
        for bits in [
            0x7fc0_0000_u32,
            0xffc0_0000,
            0x7fc0_0001,
            0x7fc0_01ff,
            0x7fff_ffff,
            0xffff_ffff,
        ] {
            let x = f32::from_bits(bits);
            assert!(exp(x).is_nan(), "{bits:x}: {}", exp(x));
            assert!(normal(x).0.is_nan(), "{bits:x}: {}", normal(x).0);
            assert!(normal(x).1.is_nan(), "{bits:x}: {}", normal(x).1);
        }
    }

    #[test]
    fn normal_agrees_with_tables() {
        // Φ of Abramowitz and Stegun, table 26.1.
        for (x, below) in [
            (0.0, 0.5),
            (0.5, 0.691_462_46),
            (1.0, 0.841_344_8),
            (2.0, 0.977_249_87),
            (3.5, 0.999_767_37),
        ] {
            assert!((normal(x).0 - below).abs() < 2e-7, "{x}: {}", normal(x).0);
            assert!((normal(-x).0 - (1.0 - below)).abs() < 2e-7, "-{x}");
        }
        assert!((normal(1.0).1 - 0.241_970_72).abs() < 1e-7);
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for length in [0, 1, 31, 32, 33, 100] {
            let values: Vec<f32> = (0..length).map(|n| n as f32 - 40.0).collect();
            assert_eq!(
                sum_of(&values, &values, |a, _| a),
                values.iter().sum::<f32>()
            );
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest);
        }
    }
}
