//! The tensors that one result is made of, read together and decoded chunk by chunk.

use std::ops::Range;

use super::chunk::Computed;
use crate::plan::TensorRef;
use crate::{DType, MergePlan, Result};

/// Tensors of the same number of elements.
pub(super) struct Inputs<'a> {
    plan: &'a MergePlan,
    tensors: Vec<(&'a TensorRef, DType)>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(plan: &'a MergePlan, tensors: impl Iterator<Item = &'a TensorRef>) -> Self {
        // The plan refers to tensors that are there.
        let dtype = |tensor: &TensorRef| {
            let info = plan.sources[tensor.source].get(&tensor.key);
            info.map_or(DType::F32, |info| info.dtype)
        };
        Self {
            plan,
            tensors: tensors.map(|tensor| (tensor, dtype(tensor))).collect(),
        }
    }

    /// Number of tensors.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether any is of this dtype.
    pub(super) fn any_is(&self, dtype: DType) -> bool {
        self.tensors.iter().any(|&(_, other)| other == dtype)
    }

    /// Bytes of so many elements of all.
    pub(super) fn n_bytes(&self, n_elements: usize) -> usize {
        let sizes = self.tensors.iter().map(|(_, dtype)| dtype.size_bytes());
        n_elements * sizes.sum::<usize>()
    }

    /// Reads `n_elements` from `first` on of each tensor, one tensor after the other.
    pub(super) fn read(&self, first: usize, n_elements: usize, bytes: &mut [u8]) -> Result<()> {
        let mut left = bytes;
        for &(tensor, dtype) in &self.tensors {
            let (own, others) = left.split_at_mut(n_elements * dtype.size_bytes());
            left = others;
            let source = &self.plan.sources[tensor.source];
            source.read(&tensor.key, first, own)?;
        }
        Ok(())
    }

    /// Decodes a range of the `n_elements` that were read, into a buffer for each tensor.
    pub(super) fn decode<T: Computed>(
        &self,
        bytes: &[u8],
        n_elements: usize,
        range: Range<usize>,
        buffers: &mut Vec<Vec<T>>,
    ) -> Result<()> {
        buffers.resize_with(self.tensors.len().max(buffers.len()), Vec::new);
        let mut left = bytes;
        for (&(tensor, dtype), buffer) in self.tensors.iter().zip(buffers) {
            let size = dtype.size_bytes();
            let (own, others) = left.split_at(n_elements * size);
            left = others;
            buffer.resize(range.len(), T::zeroed());
            let own = &own[range.start * size..range.end * size];
            T::decode(&tensor.key, dtype, own, buffer)?;
        }
        Ok(())
    }
}
