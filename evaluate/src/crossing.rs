//! Copies of values between memory and the device that a model computes on, each counted.
//!
//! Whatever a step of training, its objectives and its models copy goes through here, so that a test on the processor can
//! count what would cross the bus of a card: `train/tests/crossings.rs`. Fused operations, which run on the processor alone, do
//! not. Copies that candle makes within an operation (the strides of a tensor that is not contiguous) are not counted.

use std::cell::Cell;

use candle_core::{Device, Result, Shape, Tensor, WithDType};

/// Copies that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossings {
    /// Copies from memory to the device.
    pub to_device: u64,
    /// Their bytes.
    pub to_device_bytes: u64,
    /// Copies from the device to memory. The program waits for each.
    pub to_memory: u64,
    /// Their bytes.
    pub to_memory_bytes: u64,
}

thread_local! {
    /// Of this thread, since it began.
    static SO_FAR: Cell<Crossings> = const { Cell::new(Crossings {
        to_device: 0,
        to_device_bytes: 0,
        to_memory: 0,
        to_memory_bytes: 0,
    }) };
}

/// The copies of this thread so far.
#[must_use]
pub fn so_far() -> Crossings {
    SO_FAR.get()
}

impl std::ops::Sub for Crossings {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            to_device: self.to_device - earlier.to_device,
            to_device_bytes: self.to_device_bytes - earlier.to_device_bytes,
            to_memory: self.to_memory - earlier.to_memory,
            to_memory_bytes: self.to_memory_bytes - earlier.to_memory_bytes,
        }
    }
}

/// A tensor of `values`, row-major, on the device.
///
/// # Errors
/// When there are not as many values as the shape has, or the device fails.
pub fn to_device<T: WithDType>(
    values: Vec<T>,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    let mut sum = SO_FAR.get();
    sum.to_device += 1;
    sum.to_device_bytes += size_of_val(values.as_slice()) as u64;
    SO_FAR.set(sum);
    Tensor::from_vec(values, shape.into(), device)
}

/// The values of a tensor, row-major.
///
/// # Errors
/// When the tensor is of another type, or the device fails.
pub fn to_memory<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    let values = tensor.flatten_all()?.to_vec1()?;
    note_to_memory(size_of_val(values.as_slice()));
    Ok(values)
}

/// The number of a tensor without axes.
///
/// # Errors
/// When the tensor has axes or is of another type, or the device fails.
pub fn number<T: WithDType>(tensor: &Tensor) -> Result<T> {
    note_to_memory(size_of::<T>());
    tensor.to_scalar()
}

fn note_to_memory(n_bytes: usize) {
    let mut sum = SO_FAR.get();
    sum.to_memory += 1;
    sum.to_memory_bytes += n_bytes as u64;
    SO_FAR.set(sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_by_direction_with_their_bytes() {
        let before = so_far();
        let tensor = to_device(vec![1f32, 2.0, 3.0], 3, &Device::Cpu).expect("a tensor");
        let values: Vec<f32> = to_memory(&tensor).expect("values");
        assert_eq!(values, [1.0, 2.0, 3.0]);
        let sum: f32 = tensor
            .sum_all()
            .and_then(|sum| number(&sum))
            .expect("a number");
        assert_eq!(sum, 6.0);
        let expected = Crossings {
            to_device: 1,
            to_device_bytes: 12,
            to_memory: 2,
            to_memory_bytes: 16,
        };
        assert_eq!(so_far() - before, expected);
    }
}
