//! A part of an f32 variable on the CPU, where it stands in memory.

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, bail};

/// Where elements `range` of a contiguous tensor stand in its storage.
///
/// # Errors
/// When the tensor has gaps or ends before the range does.
pub(crate) fn range_of(layout: &Layout, range: &Range<usize>) -> Result<Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the variable is not contiguous");
    };
    if range.start > range.end || range.end > end - start {
        bail!("{range:?} lies outside of the variable");
    }
    Ok(start + range.start..start + range.end)
}

/// Elements `range` of a contiguous f32 tensor, to be written.
///
/// # Errors
/// As [`range_of`], and when the tensor is not f32.
pub(crate) fn part_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    range: &Range<usize>,
) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("the variable is not f32");
    };
    Ok(&mut values[range_of(layout, range)?])
}
