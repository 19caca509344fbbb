//! A checkpoint in memory whose values have gone to where they are wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use merge::io::{Aliases, SourceInfo, TensorEntry};
use merge::{Checkpoint, TensorSource};

use crate::Result;

/// The headers of `checkpoint`, and the values of all tensors but those that are `gone`, by key.
pub(crate) fn without(
    checkpoint: &Checkpoint,
    is_gone: impl Fn(&str) -> bool,
) -> Result<Arc<Checkpoint>> {
    let mut tensors = Vec::new();
    let mut kept = BTreeMap::new();
    for (index, (key, info)) in checkpoint.tensors().enumerate() {
        tensors.push(TensorEntry::named(key.to_owned(), info.clone()));
        if !is_gone(key) {
            kept.insert(index, checkpoint.read_all(key)?);
        }
    }
    Ok(Arc::new(Checkpoint::new(Box::new(Released {
        info: checkpoint.info().clone(),
        aliases: checkpoint.aliases().clone(),
        tensors,
        kept,
    }))))
}

struct Released {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    aliases: Aliases,
    /// Values by number of tensor.
    kept: BTreeMap<usize, Vec<u8>>,
}

impl TensorSource for Released {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> merge::Result<()> {
        let info = &self.tensors[index].info;
        let Some(values) = self.kept.get(&index) else {
            return Err(merge::Error::MissingKey {
                path: self.info.path.clone(),
                key: self.tensors[index].name.clone().unwrap_or_default(),
                nearest: None,
            });
        };
        let start = info.dtype.bytes_of(first);
        out.copy_from_slice(&values[start..start + out.len()]);
        Ok(())
    }
}
