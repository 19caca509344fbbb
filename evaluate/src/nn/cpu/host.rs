//! Tensors as slices.

use std::ops::Deref;

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

/// The elements of a contiguous f32 tensor in the CPU's memory, which is not written to as long as
/// this lives.
pub struct Host<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    first: usize,
    end: usize,
}

impl<'a> Host<'a> {
    /// Of a tensor.
    ///
    /// # Errors
    /// When it is elsewhere, of another dtype or not contiguous.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let (true, Some((first, end))) = (super::takes(tensor), layout.contiguous_offsets()) else {
            bail!("a fused operation needs contiguous f32 tensors in the CPU's memory");
        };
        Ok(Self {
            storage: Box::new(storage),
            first,
            end,
        })
    }

    /// The elements.
    pub fn values(&self) -> &[f32] {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.first..self.end],
            // Refused by the constructor.
            _ => &[],
        }
    }
}

/// A copy of the elements of a tensor.
///
/// # Errors
/// As [`Host::of`], save that a tensor may have gaps.
pub fn host_values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Host::of(&tensor.contiguous()?)?.values().to_vec())
}
