//! A view of a source some of whose tensors are read in full precision.

use super::{Aliases, SourceInfo, TensorEntry, TensorSource};
use crate::dtype::{decode_f32, encode_f32};
use crate::{DType, Result};

/// Elements that are decoded at once.
const CHUNK: usize = 1 << 14;

/// A source some of whose 16-bit floats are read as f32, which changes no value.
pub(crate) struct Widened {
    inner: Box<dyn TensorSource>,
    entries: Vec<TensorEntry>,
}

impl Widened {
    /// A view of `inner`, in which 16-bit floats that `is_meant` says are f32.
    pub(crate) fn new(
        inner: Box<dyn TensorSource>,
        is_meant: impl Fn(usize, &TensorEntry) -> bool,
    ) -> Self {
        let mut entries = inner.tensors().to_vec();
        for (index, entry) in entries.iter_mut().enumerate() {
            if matches!(entry.info.dtype, DType::F16 | DType::BF16) && is_meant(index, entry) {
                entry.info.dtype = DType::F32;
            }
        }
        Self { inner, entries }
    }
}

impl TensorSource for Widened {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn aliases(&self) -> Aliases {
        self.inner.aliases()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.inner.stored_dtype(index)
    }

    fn is_computed(&self, index: usize) -> bool {
        self.entries[index].info.dtype != self.inner.tensors()[index].info.dtype
            || self.inner.is_computed(index)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (wide, stored) = (
            self.entries[index].info.dtype,
            self.inner.tensors()[index].info.dtype,
        );
        if wide == stored {
            return self.inner.read(index, first, out);
        }
        let key = self.entries[index].path.to_string();
        let chunks = out.chunks_mut(CHUNK * wide.size_bytes());
        for (number, out) in chunks.enumerate() {
            let n = out.len() / wide.size_bytes();
            let mut bytes = vec![0; n * stored.size_bytes()];
            self.inner.read(index, first + number * CHUNK, &mut bytes)?;
            let mut values = vec![0.0; n];
            decode_f32(&key, stored, &bytes, &mut values)?;
            encode_f32(&key, wide, &values, out)?;
        }
        Ok(())
    }
}
