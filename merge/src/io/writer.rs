//! The streaming writer: sizes first, data in any order from any thread, then one atomic rename.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::{Result, TensorInfo};

/// The kind of file to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputContainer {
    /// safetensors.
    Safetensors,
    /// A zip archive that `torch.load(weights_only=True)` opens: a flat dictionary of tensors.
    Torch,
    /// The same with the weights under `state_dict`, as Lightning has them.
    TorchLightning,
}

/// Where and how to write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// The target file.
    pub path: PathBuf,
    /// The kind of file; by the extension of `path` unless given.
    pub container: Option<OutputContainer>,
    /// Split into files of at most this many tensor bytes, with an index json.
    pub max_shard_bytes: Option<u64>,
    /// Replace an existing target.
    pub force: bool,
}

/// An output file under way. Dropping it without [`Writer::finish`] leaves no trace.
pub struct Writer {}

impl Writer {
    /// Creates the temporary file beside the target and lays it out. Tensors are stored in the
    /// order given. `metadata` may hold placeholders: [`Writer::finish`] takes the final values,
    /// which must not be longer.
    ///
    /// # Errors
    /// When the target exists (without `force`), its folder cannot be written, or the disk has no
    /// room for the whole file.
    pub fn create(
        tensors: &[(String, TensorInfo)],
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
    ) -> Result<Self> {
        let _ = (tensors, metadata, options);
        unreachable!("written by the writing part")
    }

    /// Writes bytes of tensor `index` from `first_byte` on. May be called from many threads; all
    /// bytes of all tensors must have been written once before [`Writer::finish`].
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        let _ = (index, first_byte, bytes);
        unreachable!("written by the writing part")
    }

    /// Writes headers, syncs and renames; returns the files in place.
    ///
    /// # Errors
    /// When the disk is full or fails; the old target is then untouched.
    pub fn finish(self, metadata: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
        let _ = metadata;
        unreachable!("written by the writing part")
    }
}
