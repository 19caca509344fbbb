//! A checkpoint in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use merge::io::{Container, SourceInfo, TensorEntry};
use merge::{Checkpoint, DType, Result, TensorInfo, TensorSource};

/// Tensors in memory.
pub struct Stored {
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    data: Vec<Vec<u8>>,
}

impl Stored {
    /// An empty source that calls itself `name`.
    pub fn new(name: &str) -> Self {
        Self {
            info: SourceInfo {
                path: PathBuf::from(name),
                container: Container::Safetensors,
                files: Vec::new(),
                metadata: BTreeMap::new(),
                roots: Vec::new(),
                root: String::new(),
                values: Vec::new(),
                opaque: Vec::new(),
            },
            entries: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Adds a tensor as it is stored.
    pub fn with_bytes(mut self, key: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> Self {
        let info = TensorInfo {
            dtype,
            shape: shape.to_vec(),
        };
        self.entries.push(TensorEntry::named(key.to_owned(), info));
        self.data.push(data);
        self
    }

    /// Adds a vector of `f32`.
    pub fn with(self, key: &str, values: &[f32]) -> Self {
        let data = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.with_bytes(key, DType::F32, &[values.len()], data)
    }

    /// A checkpoint over it.
    pub fn open(self) -> Checkpoint {
        Checkpoint::new(Box::new(self))
    }
}

impl TensorSource for Stored {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let first_byte = first * self.entries[index].info.dtype.size_bytes();
        out.copy_from_slice(&self.data[index][first_byte..first_byte + out.len()]);
        Ok(())
    }
}
