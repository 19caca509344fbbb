//! A view of a checkpoint whose tensors have their elements in another order: axes exchanged, joined or taken apart.

use std::io;
use std::sync::Arc;

use super::read_at::ReadAt;
use super::torch::strided::{Span, Strided};
use super::{Checkpoint, SourceInfo, TensorEntry, TensorSource};
use crate::{ContainerFault, DType, Result};

/// The order of a tensor's elements in the one that it comes from.
pub(crate) struct Order {
    /// The tensor that it comes from.
    pub(crate) key: String,
    elements: Strided,
}

impl Order {
    /// Axes of these sizes and distances of neighbors, in elements, from element `first` on.
    pub(crate) fn new(key: &str, first: usize, sizes: &[usize], strides: &[u64]) -> Self {
        Self {
            key: key.to_owned(),
            elements: Strided::new(first as u64, sizes, strides),
        }
    }
}

/// The view. No element shares a byte with another.
pub(crate) struct ByAxes {
    inner: Arc<Checkpoint>,
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    orders: Vec<Order>,
}

impl ByAxes {
    /// Of these tensors, each with where it comes from; `info` is what the view says of its file.
    pub(crate) fn new(
        inner: Arc<Checkpoint>,
        info: SourceInfo,
        tensors: Vec<(TensorEntry, Order)>,
    ) -> Self {
        let (entries, orders) = tensors.into_iter().unzip();
        Self {
            inner,
            info,
            entries,
            orders,
        }
    }
}

impl TensorSource for ByAxes {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.inner.stored_dtype(&self.orders[index].key);
        stored.unwrap_or(self.entries[index].info.dtype)
    }

    fn is_computed(&self, index: usize) -> bool {
        let order = &self.orders[index];
        order.elements.contiguous().is_none() || self.inner.is_computed(&order.key)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let Order { key, elements } = &self.orders[index];
        if out.is_empty() {
            return Ok(());
        }
        if let Some(start) = elements.contiguous() {
            return self.inner.read(key, start as usize + first, out);
        }
        let size = self.entries[index].info.dtype.size_bytes();
        let stored = Stored {
            source: &self.inner,
            key,
            size,
        };
        let span = Span {
            source: &stored,
            start: 0,
            n_bytes: stored.n_bytes(),
        };
        elements
            .read(span, size, first as u64, out)
            .map_err(|source| {
                ContainerFault::ReadTensor {
                    path: self.info.path.clone(),
                    key: key.clone(),
                    source,
                }
                .into()
            })
    }
}

/// The bytes of a tensor.
struct Stored<'a> {
    source: &'a Checkpoint,
    key: &'a str,
    size: usize,
}

impl ReadAt for Stored<'_> {
    fn n_bytes(&self) -> u64 {
        self.source.get(self.key).map_or(0, |info| info.n_bytes())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        // Orders are of whole elements.
        let first = offset as usize / self.size;
        self.source
            .read(self.key, first, out)
            .map_err(io::Error::other)
    }
}
