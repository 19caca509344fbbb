//! Checkpoints whose tensors go by other names.

use std::sync::Arc;

use super::{Aliases, Blamed, Checkpoint, SourceInfo, TensorEntry, TensorSource};
use crate::{DType, Result};

/// The tensors of a checkpoint under other names. Several names may stand for the values of one tensor.
pub(crate) struct Renamed {
    inner: Arc<Checkpoint>,
    /// The name of each tensor in the checkpoint.
    keys: Vec<String>,
    entries: Vec<TensorEntry>,
    aliases: Aliases,
}

impl Renamed {
    /// A view of `inner`. Each tensor comes with its name in `inner`.
    pub(crate) fn view(
        inner: Arc<Checkpoint>,
        tensors: Vec<(String, TensorEntry)>,
        aliases: Aliases,
    ) -> Arc<Checkpoint> {
        let (keys, entries) = tensors.into_iter().unzip();
        Arc::new(Checkpoint::new(Box::new(Self {
            inner,
            keys,
            entries,
            aliases,
        })))
    }
}

impl TensorSource for Renamed {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.inner.stored_dtype(&self.keys[index]);
        stored.unwrap_or(self.entries[index].info.dtype)
    }

    fn is_computed(&self, index: usize) -> bool {
        self.inner.is_computed(&self.keys[index])
    }

    fn blamed(&self, index: usize, element: usize) -> Result<Option<Blamed>> {
        self.inner.blamed(&self.keys[index], element)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read(&self.keys[index], first, out)
    }
}
