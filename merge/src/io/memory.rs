//! Tensors in memory, as a source like any file.

use super::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, Error, Result, TensorSource};

/// Tensors that are in no file, or of which only the headers are left.
pub(crate) struct Memory {
    pub(crate) info: SourceInfo,
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) aliases: Aliases,
    /// The bytes of each tensor; `None` where they were let go.
    pub(crate) data: Vec<Option<Vec<u8>>>,
}

impl TensorSource for Memory {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let entry = &self.tensors[index];
        let Some(values) = &self.data[index] else {
            return Err(Error::MissingKey {
                path: self.info.path.clone(),
                key: entry.name.clone().unwrap_or_default(),
                nearest: None,
            });
        };
        let start = entry.info.dtype.bytes_of(first);
        out.copy_from_slice(&values[start..start + out.len()]);
        Ok(())
    }
}

/// A copy of a checkpoint in memory that has all its headers, but no values of the tensors that are `gone`. Reading one of
/// those is an error.
///
/// # Errors
/// When a tensor that stays cannot be read.
pub fn without_values(
    checkpoint: &Checkpoint,
    is_gone: impl Fn(&str) -> bool,
) -> Result<Checkpoint> {
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    for (key, info) in checkpoint.tensors() {
        tensors.push(TensorEntry::named(key.to_owned(), info.clone()));
        data.push(match is_gone(key) {
            true => None,
            false => Some(checkpoint.read_all(key)?),
        });
    }
    Ok(Checkpoint::new(Box::new(Memory {
        info: checkpoint.info().clone(),
        tensors,
        aliases: checkpoint.aliases().clone(),
        data,
    })))
}
