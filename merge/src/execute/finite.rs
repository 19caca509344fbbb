//! Whether all elements are numbers, judged by their bytes.

use bytemuck::Pod;

use crate::dtype::with_aligned;
use crate::io::Blamed;
use crate::plan::TensorRef;
use crate::{DType, Error, MergeFault, MergePlan, Result, decode_f64};

/// Checks elements `first..` of an input, whose `bytes` were read.
///
/// # Errors
/// [`MergeFault::NonFiniteInput`] with the model or the adapter, the tensor and the index of the first such element.
pub(super) fn check(
    plan: &MergePlan,
    tensor: &TensorRef,
    dtype: DType,
    first: usize,
    bytes: &[u8],
) -> Result<()> {
    if is_finite(dtype, bytes) {
        return Ok(());
    }
    let (at, value) = first_of(&tensor.key, dtype, bytes)?;
    let source = &plan.sources()[tensor.source];
    let Blamed { path, key, index } = match source.blamed(&tensor.key, first + at)? {
        Some(blamed) => blamed,
        None => Blamed {
            path: source.path().into(),
            key: tensor.key.clone(),
            index: source.require(&tensor.key)?.index_of(first + at),
        },
    };
    Err(MergeFault::NonFiniteInput {
        path,
        key,
        index,
        value,
    }
    .into())
}

/// Whether no element is infinite or NaN; other dtypes than floats always are finite.
pub(crate) fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::F64 => exponents_below(bytes, 0x7ff0_0000_0000_0000u64),
        DType::F32 | DType::C64 => exponents_below(bytes, 0x7f80_0000u32),
        DType::F16 => exponents_below(bytes, 0x7c00u16),
        DType::BF16 => exponents_below(bytes, 0x7f80u16),
        DType::F8E5M2 => exponents_below(bytes, 0x7cu8),
        // This form has no infinities, and NaN is the one pattern with all bits set.
        DType::F8E4M3 => exponents_below(bytes, 0x7fu8),
        DType::F8E8M0 => exponents_below(bytes, 0xffu8),
        DType::F8E4M3Fnuz | DType::F8E5M2Fnuz => bytes.iter().all(|&byte| byte != 0x80),
        _ => true,
    }
}

/// The first element that is infinite or NaN, of bytes that have one. Rare, so it may take its time.
pub(crate) fn first_of(key: &str, dtype: DType, bytes: &[u8]) -> Result<(usize, f64)> {
    // The parts of complex numbers are as wide as f32.
    let (parts, dtype) = match dtype {
        DType::C64 => (2, DType::F32),
        dtype => (1, dtype),
    };
    let mut values = vec![0.0; bytes.len() / dtype.size_bytes()];
    decode_f64(key, dtype, bytes, &mut values)?;
    let found = values.iter().position(|value| !value.is_finite());
    let at = found.ok_or_else(|| Error::NonFinite {
        key: key.to_owned(),
    })?;
    Ok((at / parts, values[at]))
}

/// Whether in no word all bits of `mask`, a format's exponent, are set. Looks at everything without
/// branching, which compilers turn into vector instructions; in a loop, for the library's searches do
/// not become part of the closure that chooses those.
fn exponents_below<W>(bytes: &[u8], mask: W) -> bool
where
    W: Pod + std::ops::BitAnd<Output = W> + PartialEq,
{
    with_aligned(bytes, |words: &[W]| {
        crate::vectorized(
            #[inline(always)]
            || {
                let mut is_hit = false;
                for &word in words {
                    is_hit |= word & mask == mask;
                }
                !is_hit
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_and_nans_are_found_in_every_float_dtype() {
        let cases: [(DType, &[u8], &[u8]); 10] = [
            (DType::F64, &1.0f64.to_le_bytes(), &f64::NAN.to_le_bytes()),
            (
                DType::F32,
                &f32::MAX.to_le_bytes(),
                &f32::INFINITY.to_le_bytes(),
            ),
            (DType::F16, &[0xff, 0x7b], &[0x00, 0x7c]),
            (DType::BF16, &[0x7f, 0x7f], &[0x80, 0xff]),
            (DType::F8E5M2, &[0x7b], &[0xfc]),
            (DType::F8E4M3, &[0x7e], &[0xff]),
            (DType::F8E8M0, &[0x7f], &[0xff]),
            (DType::F8E4M3Fnuz, &[0x7f], &[0x80]),
            (DType::F8E5M2Fnuz, &[0xff], &[0x80]),
            (
                DType::C64,
                &[0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x3f],
                &[0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x7f],
            ),
        ];
        for (dtype, fine, bad) in cases {
            assert!(is_finite(dtype, fine), "{dtype}");
            let mut long = fine.repeat(700);
            long.extend_from_slice(bad);
            long.extend_from_slice(bad);
            assert!(!is_finite(dtype, &long), "{dtype}");
            let (at, value) = first_of("x", dtype, &long).expect("decoded");
            assert_eq!(at, 700, "{dtype}");
            assert!(!value.is_finite(), "{dtype}");
        }
        assert!(is_finite(DType::I64, &[0xff; 16]));
    }
}
