//! A part of an f32 variable on the CPU, where it stands in memory.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};

/// The place of elements `range` of a contiguous tensor in its storage.
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
fn part_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    range: &Range<usize>,
) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("the variable is not f32");
    };
    Ok(&mut values[range_of(layout, range)?])
}

/// Lends elements `range` of an f32 variable on the CPU to `change`, without a copy of them.
///
/// # Errors
/// [`crate::Error::Device`] when the variable is not f32, not contiguous or not on the CPU; and what
/// `change` gives.
pub(crate) fn change_in_place(
    variable: &Var,
    range: Range<usize>,
    change: impl FnOnce(&mut [f32]) -> crate::Result<()> + Send,
) -> crate::Result<()> {
    let operation = InPlace {
        range,
        change: Mutex::new(Some(change)),
        outcome: Mutex::new(Ok(())),
    };
    variable.inplace_op1(&operation)?;
    let outcome = operation.outcome.into_inner();
    outcome.unwrap_or_else(PoisonError::into_inner)
}

/// An operation of candle's, which lends the variable's memory to write to. Operations are shared, so what
/// this one uses up lies behind a lock.
struct InPlace<F> {
    range: Range<usize>,
    change: Mutex<Option<F>>,
    outcome: Mutex<crate::Result<()>>,
}

impl<F: FnOnce(&mut [f32]) -> crate::Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "change of a part"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let part = part_mut(storage, layout, &self.range)?;
        let change = self
            .change
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(change) = change {
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = change(part);
        }
        Ok(())
    }
}
