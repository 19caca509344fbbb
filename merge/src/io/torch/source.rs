//! An open torch file, whose data are read on request.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use super::contents::Contents;
use super::layout::{Layout, Placed, Storage};
use super::read_at::ReadAt;
use super::strided::Span;
use super::{io_error, roots};
use crate::io::{Container, OpenOptions, SourceFile, SourceInfo, TensorEntry, TensorSource};
use crate::{Error, Result};

/// Bytes that are read at once to compute a checksum.
const CHECK_BYTES: usize = 256 << 10;

/// An open torch file.
pub(crate) struct TorchSource {
    source: Box<dyn ReadAt>,
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    placed: Vec<Placed>,
    storages: Vec<Storage>,
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
            return Err(Error::PickledObject {
                path: path.into(),
                class,
            });
        }
        let (placed, infos): (Vec<_>, Vec<_>) = layout.tensors.into_iter().unzip();
        let mut entries: Vec<TensorEntry> = (contents.tensors.into_iter().zip(infos))
            .map(|((path, _), info)| TensorEntry {
                path,
                name: None,
                info,
            })
            .collect();
        let choice = roots::choose(&entries, options.root.as_deref()).map_err(|roots| {
            Error::UnknownRoot {
                path: path.into(),
                root: options.root.clone().unwrap_or_default(),
                roots,
            }
        })?;
        for (entry, name) in entries.iter_mut().zip(choice.names) {
            entry.name = name;
        }
        let info = SourceInfo {
            path: path.into(),
            container,
            files: vec![SourceFile {
                path: path.into(),
                n_bytes: source.n_bytes(),
            }],
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
        })
    }

    /// Compares the checksum of a storage. The first to touch it reads it whole; if that is what
    /// was asked for, into `out`, which says whether nothing is left to read.
    fn check(&self, storage: &Storage, out: Option<&mut [u8]>) -> Result<bool> {
        let Some(stored) = storage.crc else {
            return Ok(false);
        };
        let mut known = storage
            .computed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut is_read = false;
        let computed = match (*known, out) {
            (Some(computed), _) => computed,
            (None, Some(out)) => {
                self.read_at(out, storage.start)?;
                is_read = true;
                crc32fast::hash(out)
            }
            (None, None) => {
                let mut hasher = crc32fast::Hasher::new();
                let mut buffer = vec![0; CHECK_BYTES.min(storage.n_bytes as usize)];
                let mut done = 0;
                while done < storage.n_bytes {
                    let n = (storage.n_bytes - done).min(CHECK_BYTES as u64) as usize;
                    self.read_at(&mut buffer[..n], storage.start + done)?;
                    hasher.update(&buffer[..n]);
                    done += n as u64;
                }
                hasher.finalize()
            }
        };
        *known = Some(computed);
        if computed == stored {
            return Ok(is_read);
        }
        Err(Error::Checksum {
            path: self.info.path.clone(),
            entry: storage.entry.clone(),
            stored,
            computed,
        })
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        (self.source.read_exact_at(out, offset)).map_err(|source| io_error(&self.info.path, source))
    }
}

impl TensorSource for TorchSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let placed = &self.placed[index];
        let storage = &self.storages[placed.storage];
        let element_bytes = self.entries[index].info.dtype.size_bytes();
        if out.is_empty() {
            return Ok(());
        }
        let Some(start) = placed.elements.contiguous() else {
            self.check(storage, None)?;
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
        let is_whole = at == 0 && out.len() as u64 == storage.n_bytes;
        if self.check(storage, is_whole.then_some(&mut *out))? {
            return Ok(());
        }
        self.read_at(out, storage.start + at)
    }
}
