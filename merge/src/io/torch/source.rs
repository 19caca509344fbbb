//! An open torch file, whose data are read on request.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use crc32fast::Hasher;

use super::checksum::Checksum;
use super::contents::Contents;
use super::layout::{Layout, Placed, Storage};
use super::strided::Span;
use super::{io_error, roots};
use crate::io::aliases::{self, Aliases};
use crate::io::read_at::ReadAt;
use crate::io::{Container, OpenOptions, SourceFile, SourceInfo, TensorEntry, TensorSource};
use crate::{Error, Result, TorchFault};

/// Bytes that are read at once to compute a checksum.
const CHECK_BYTES: usize = 256 << 10;

/// An open torch file.
pub(crate) struct TorchSource {
    source: Box<dyn ReadAt>,
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    placed: Vec<Placed>,
    storages: Vec<Storage>,
    aliases: Aliases,
}

impl TorchSource {
    pub(crate) fn new(
        path: &Path,
        container: Container,
        source: Box<dyn ReadAt>,
        contents: Contents,
        layout: Layout,
        metadata: BTreeMap<String, String>,
        options: &OpenOptions,
    ) -> Result<Self> {
        if contents.tensors.is_empty()
            && let Some(class) = contents.root_class
        {
            if contents.is_script {
                return Err(Error::Torch(TorchFault::ScriptWithoutTensors {
                    path: path.into(),
                    class,
                }));
            }
            return Err(Error::Torch(TorchFault::PickledObject {
                path: path.into(),
                class,
            }));
        }
        let (placed, infos): (Vec<_>, Vec<_>) = layout.tensors.into_iter().unzip();
        let mut entries: Vec<TensorEntry> = (contents.tensors.into_iter().zip(infos))
            .map(|((path, _), info)| TensorEntry {
                path,
                name: None,
                info,
            })
            .collect();
        // The names of a TorchScript model are those from its root object on.
        let rule = match contents.is_script {
            true => Some(options.root.as_deref().unwrap_or_default()),
            false => options.root.as_deref(),
        };
        let choice = roots::choose(&entries, rule).map_err(|roots| Error::UnknownRoot {
            path: path.into(),
            root: options.root.clone().unwrap_or_default(),
            roots,
        })?;
        for (entry, name) in entries.iter_mut().zip(choice.names) {
            entry.name = name;
        }
        // Of one storage, and in it the same elements in the same order. Views of other elements are tensors
        // of their own; tensors without elements are nowhere.
        let aliases = aliases::at_one_place(&entries, |index| {
            let (Placed { storage, elements }, TensorEntry { info, .. }) =
                (&placed[index], &entries[index]);
            let is_somewhere = info.n_elements() > 0;
            is_somewhere.then_some((*storage, elements, info.dtype, &info.shape))
        });
        let info = SourceInfo {
            path: path.into(),
            container,
            files: vec![SourceFile::of(path, source.as_ref())],
            metadata,
            roots: choice.roots,
            root: choice.root,
            values: contents.values,
            opaque: contents.opaque,
        };
        Ok(Self {
            source,
            info,
            entries,
            placed,
            storages: layout.storages,
            aliases,
        })
    }

    /// Reads bytes `at..` of a storage into `out` and compares its checksum as soon as all of it
    /// has been read: the bytes are hashed on their way, so that nothing is read twice.
    fn read_piece(&self, storage: &Storage, at: u64, out: &mut [u8]) -> Result<()> {
        self.read_at(storage, out, at)?;
        if storage.crc.is_none() || lock(storage).computed().is_some() {
            return self.compare(storage);
        }
        let mut hasher = Hasher::new();
        hasher.update(out);
        lock(storage).add(at, at + out.len() as u64, hasher, storage.n_bytes);
        self.compare(storage)
    }

    /// Compares the checksum of a storage of which a tensor uses only a part, or in another order:
    /// the first to touch it reads it whole.
    fn check_whole(&self, storage: &Storage) -> Result<()> {
        let mut checksum = lock(storage);
        if storage.crc.is_some() && checksum.computed().is_none() {
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; CHECK_BYTES.min(storage.n_bytes as usize)];
            let mut done = 0;
            while done < storage.n_bytes {
                let n = (storage.n_bytes - done).min(CHECK_BYTES as u64) as usize;
                self.read_at(storage, &mut buffer[..n], done)?;
                hasher.update(&buffer[..n]);
                done += n as u64;
            }
            checksum.set(hasher.finalize());
        }
        drop(checksum);
        self.compare(storage)
    }

    /// Refuses a storage whose checksum is known to be wrong.
    fn compare(&self, storage: &Storage) -> Result<()> {
        match (storage.crc, lock(storage).computed()) {
            (Some(stored), Some(computed)) if stored != computed => {
                Err(Error::Torch(TorchFault::Checksum {
                    path: self.info.path.clone(),
                    entry: storage.entry.clone(),
                    stored,
                    computed,
                }))
            }
            _ => Ok(()),
        }
    }

    /// Bytes `at..` of a storage.
    fn read_at(&self, storage: &Storage, out: &mut [u8], at: u64) -> Result<()> {
        let whole = storage.start..storage.start + storage.n_bytes;
        (self.source.read_part(out, storage.start + at, whole))
            .map_err(|source| io_error(&self.info.path, source))
    }
}

impl TensorSource for TorchSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let placed = &self.placed[index];
        let storage = &self.storages[placed.storage];
        let element_bytes = self.entries[index].info.dtype.size_bytes();
        if out.is_empty() {
            return Ok(());
        }
        let Some(start) = placed.elements.contiguous() else {
            self.check_whole(storage)?;
            let span = Span {
                source: &*self.source,
                start: storage.start,
                n_bytes: storage.n_bytes,
            };
            return (placed.elements)
                .read(span, element_bytes, first as u64, out)
                .map_err(|source| io_error(&self.info.path, source));
        };
        let at = (start + first as u64) * element_bytes as u64;
        if start == 0 && self.entries[index].info.n_bytes() == storage.n_bytes {
            return self.read_piece(storage, at, out);
        }
        self.check_whole(storage)?;
        self.read_at(storage, out, at)
    }
}

fn lock(storage: &Storage) -> MutexGuard<'_, Checksum> {
    (storage.checksum.lock()).unwrap_or_else(PoisonError::into_inner)
}
