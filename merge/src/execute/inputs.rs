//! The tensors that one result is made of, read together and handed over chunk by chunk.

use std::ops::Range;

use half::bf16;

use super::finite;
use crate::methods::{AnyChunk, Chunk};
use crate::plan::TensorRef;
use crate::{DType, MergePlan, Result, decode_f32, decode_f64};

/// Tensors of the same number of elements.
pub(super) struct Inputs<'a> {
    plan: &'a MergePlan,
    tensors: Vec<(&'a TensorRef, DType)>,
    /// Whether an infinity or a NaN among them is refused.
    is_checked: bool,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(
        plan: &'a MergePlan,
        tensors: impl Iterator<Item = &'a TensorRef>,
        is_checked: bool,
    ) -> Self {
        // The plan refers to tensors that are there.
        let dtype = |tensor: &TensorRef| {
            let info = plan.sources()[tensor.source].get(&tensor.key);
            info.map_or(DType::F32, |info| info.dtype)
        };
        Self {
            plan,
            tensors: tensors.map(|tensor| (tensor, dtype(tensor))).collect(),
            is_checked,
        }
    }

    /// Whether any is of this dtype.
    pub(super) fn any_is(&self, dtype: DType) -> bool {
        self.tensors.iter().any(|&(_, other)| other == dtype)
    }

    /// Bytes of `n_elements` elements of each tensor, together.
    pub(super) fn n_bytes(&self, n_elements: usize) -> usize {
        let sizes = self.tensors.iter();
        sizes.map(|(_, dtype)| dtype.bytes_of(n_elements)).sum()
    }

    /// Reads `n_elements` from `first` on of each tensor, one tensor after the other, and checks that all
    /// are numbers: a method may drop an element that is none, and so hide that its model is broken.
    pub(super) fn read(&self, first: usize, n_elements: usize, bytes: &mut [u8]) -> Result<()> {
        let mut left = bytes;
        for &(tensor, dtype) in &self.tensors {
            let (own, others) = left.split_at_mut(dtype.bytes_of(n_elements));
            left = others;
            let source = &self.plan.sources()[tensor.source];
            source.read(&tensor.key, first, own)?;
            if self.is_checked {
                finite::check(self.plan, tensor, dtype, first, own)?;
            }
        }
        Ok(())
    }

    /// The tensors in a range of the `n_elements` that were read, for kernels to read: bf16 as it is
    /// stored, everything else decoded.
    pub(super) fn tensors<'b>(
        &self,
        bytes: &'b [u8],
        n_elements: usize,
        range: Range<usize>,
        is_double: bool,
        decoded: &'b mut Decoded,
    ) -> Result<Tensors<'b>> {
        if is_double {
            let to = &mut decoded.double;
            let tensors = self.decode(bytes, n_elements, range, to, decode_f64)?;
            return Ok(Tensors::F64(tensors));
        }
        let is_bf16 = self.tensors.iter().all(|&(_, dtype)| dtype == DType::BF16);
        // Buffers of bytes may begin anywhere; in practice they do at even addresses.
        if let Ok(stored) = bytemuck::try_cast_slice::<u8, bf16>(bytes)
            && is_bf16
        {
            let tensors = stored.chunks_exact(n_elements.max(1));
            let tensors = tensors.map(|tensor| &tensor[range.clone()]).collect();
            return Ok(Tensors::Bf16(tensors));
        }
        let to = &mut decoded.single;
        let tensors = self.decode(bytes, n_elements, range, to, decode_f32)?;
        Ok(Tensors::F32(tensors))
    }

    /// Decodes a range of the `n_elements` that were read, into a buffer for each tensor.
    pub(super) fn decode<'b, T: Clone + Default>(
        &self,
        bytes: &[u8],
        n_elements: usize,
        range: Range<usize>,
        buffers: &'b mut Vec<Vec<T>>,
        decode: impl Fn(&str, DType, &[u8], &mut [T]) -> Result<()>,
    ) -> Result<Vec<&'b [T]>> {
        buffers.resize_with(self.tensors.len().max(buffers.len()), Vec::new);
        let mut left = bytes;
        for (&(tensor, dtype), buffer) in self.tensors.iter().zip(&mut *buffers) {
            let (own, others) = left.split_at(dtype.bytes_of(n_elements));
            left = others;
            buffer.resize(range.len(), T::default());
            let own = &own[dtype.bytes_of(range.start)..dtype.bytes_of(range.end)];
            decode(&tensor.key, dtype, own, buffer)?;
        }
        let decoded = buffers[..self.tensors.len()].iter();
        Ok(decoded.map(Vec::as_slice).collect())
    }
}

/// Memory for decoded tensors, used again for every chunk.
#[derive(Default)]
pub(super) struct Decoded {
    single: Vec<Vec<f32>>,
    pub(super) double: Vec<Vec<f64>>,
}

/// A chunk's tensors: members, base, and the tensors paired with the members.
pub(super) enum Tensors<'b> {
    /// As they are stored.
    Bf16(Vec<&'b [bf16]>),
    /// Decoded.
    F32(Vec<&'b [f32]>),
    /// Decoded.
    F64(Vec<&'b [f64]>),
}

impl Tensors<'_> {
    /// The chunk that begins with element `first`.
    pub(super) fn chunk(&self, n_members: usize, has_base: bool, first: usize) -> AnyChunk<'_> {
        match self {
            Self::Bf16(tensors) => AnyChunk::Bf16(chunk(tensors, n_members, has_base, first)),
            Self::F32(tensors) => AnyChunk::F32(chunk(tensors, n_members, has_base, first)),
            Self::F64(tensors) => AnyChunk::F64(chunk(tensors, n_members, has_base, first)),
        }
    }
}

fn chunk<'a, V>(
    tensors: &'a [&'a [V]],
    n_members: usize,
    has_base: bool,
    first: usize,
) -> Chunk<'a, V> {
    let (members, others) = tensors.split_at(n_members);
    let (base, paired) = others.split_at(usize::from(has_base));
    Chunk {
        members,
        base: base.first().copied(),
        paired,
        first,
    }
}
