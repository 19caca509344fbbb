//! Where the tensors of a file lie: each compared with the storage it claims to be in.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use super::checksum::Checksum;
use super::contents::Contents;
use super::strided::Strided;
use super::tensor::{ElementType, StorageRef};
use super::unsupported;
use super::value::Arena;
use crate::{Error, Result, TensorInfo, TorchFault};

/// How far the values of a tensor may exceed its storage, as those of an expanded one do.
const EXPANSION_LIMIT_BYTES: u64 = 1 << 30;

/// How many times the storages all tensors together may have, as far as they exceed that limit: some share
/// one, but a file must not stand for a size out of all proportion to its own.
const SHARING_LIMIT: u64 = 8;

/// A storage in the file.
pub(crate) struct Storage {
    /// Name of its entry, for errors.
    pub(crate) entry: String,
    pub(crate) start: u64,
    pub(crate) n_bytes: u64,
    /// The CRC-32 it should have.
    pub(crate) crc: Option<u32>,
    /// The CRC-32 it has, as far as it has been read.
    pub(crate) checksum: Mutex<Checksum>,
}

impl Storage {
    pub(crate) fn new(entry: &str, start: u64, n_bytes: u64, crc: Option<u32>) -> Self {
        Self {
            entry: entry.into(),
            start,
            n_bytes,
            crc,
            checksum: Mutex::default(),
        }
    }
}

/// A tensor in its storage.
pub(crate) struct Placed {
    /// Index into [`Layout::storages`].
    pub(crate) storage: usize,
    pub(crate) elements: Strided,
}

/// Where the tensors of a file lie.
#[derive(Default)]
pub(crate) struct Layout {
    pub(crate) storages: Vec<Storage>,
    /// For each tensor of [`Contents`], in the same order: where it lies and what it is.
    pub(crate) tensors: Vec<(Placed, TensorInfo)>,
}

impl Layout {
    /// Places every tensor and compares it with its storage, which `find` looks up.
    pub(crate) fn new(
        path: &Path,
        arena: &Arena,
        contents: &Contents,
        find: impl Fn(&StorageRef) -> Result<Storage>,
    ) -> Result<Self> {
        let mut layout = Self::default();
        let mut known: HashMap<(&str, u64), usize> = HashMap::new();
        for (object_path, index) in &contents.tensors {
            let record = &arena.tensors[*index as usize];
            let dtype = match record.element {
                ElementType::Plain(dtype) => dtype,
                ElementType::Untyped => {
                    return Err(unsupported(path, object_path, "untyped bytes"));
                }
                ElementType::Unsupported(name, _) => {
                    return Err(unsupported(path, object_path, name));
                }
            };
            let reference = &arena.storages[record.storage as usize];
            let key = (&*reference.key, reference.first);
            let storage = match known.get(&key) {
                Some(&storage) => storage,
                None => {
                    layout.storages.push(find(reference)?);
                    known.insert(key, layout.storages.len() - 1);
                    layout.storages.len() - 1
                }
            };
            let elements = Strided::new(record.offset, &record.sizes, &record.strides);
            let info = TensorInfo {
                dtype,
                shape: record.sizes.clone(),
            };
            let has = layout.storages[storage].n_bytes;
            let needs = (elements.end())
                .and_then(|end| end.checked_mul(dtype.size_bytes() as u64))
                .unwrap_or(u64::MAX);
            if needs > has {
                return Err(Error::Torch(TorchFault::TensorOutOfStorage {
                    path: path.into(),
                    key: object_path.to_string(),
                    entry: layout.storages[storage].entry.clone(),
                    needs,
                    has,
                }));
            }
            if info.n_bytes() > has.saturating_add(EXPANSION_LIMIT_BYTES) {
                return Err(Error::Torch(TorchFault::TensorExpanded {
                    path: path.into(),
                    key: object_path.to_string(),
                    n_bytes: info.n_bytes(),
                    has,
                }));
            }
            layout.tensors.push((Placed { storage, elements }, info));
        }
        layout.check_total(path)?;
        Ok(layout)
    }

    /// Compares what all tensors hold with what all storages do.
    fn check_total(&self, path: &Path) -> Result<()> {
        let sizes = self.tensors.iter().map(|(_, info)| info.n_bytes());
        let n_bytes = sizes.fold(0, u64::saturating_add);
        let has = self
            .storages
            .iter()
            .fold(0_u64, |sum, storage| sum.saturating_add(storage.n_bytes));
        let most = has
            .saturating_mul(SHARING_LIMIT)
            .saturating_add(EXPANSION_LIMIT_BYTES);
        if n_bytes > most {
            return Err(Error::Torch(TorchFault::TensorExpanded {
                path: path.into(),
                key: format!("all {} tensors", self.tensors.len()),
                n_bytes,
                has,
            }));
        }
        Ok(())
    }
}
