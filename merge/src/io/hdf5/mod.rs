//! HDF5 files: the datasets of a file as tensors, under their paths, as Keras 3 (`.weights.h5`) and TF-Keras keep weights.
//!
//! Groups, headers and pieces are read by the crate `hdf5-reader`, within the limits below. Data that lie in one run, as
//! Keras writes them, are read from the file itself.
//!
//! | module | holds |
//! |---|---|
//! | `types` | dtypes by the bits of HDF5's types |
//! | `pieces` | reading datasets in pieces, compressed or not |
//!
//! Source: <https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html>; Keras's `saving_lib.py`.

mod pieces;
mod types;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use hdf5_reader::group::Group;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::layout::DataLayout;
use hdf5_reader::{Dataset, ExternalLinkResolver, Hdf5File, Storage as Bytes, StorageBuffer};

use super::ranges::{Array, Ranges, Run, Storage, sized};
use super::read_at::ReadAt;
use super::safetensors::require_root;
use super::source::{Container, OpenOptions, TensorSource};
use crate::{ContainerFault, Error, Result};
use pieces::Pieces;

/// The first bytes of a file.
const MAGIC: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// The deepest groups, the most groups and datasets.
const MAX_DEPTH: usize = 64;
const MAX_OBJECTS: usize = 1 << 18;

/// The most bytes of a header, of one read, of a decoded piece, and of the pieces that are kept.
const MAX_HEADER_BYTES: usize = 16 << 20;
const MAX_READ_BYTES: usize = 64 << 20;
const KEPT_BYTES: usize = 32 << 20;

/// Whether a file begins like one.
pub(super) fn begins(seen: &[u8]) -> bool {
    seen.starts_with(&MAGIC)
}

/// Opens a file.
pub(super) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    require_root(path, options)?;
    let file: Arc<dyn ReadAt> = Arc::from(file);
    let elsewhere = Arc::new(Elsewhere::default());
    let limits = hdf5_reader::OpenOptions::default()
        .with_chunk_cache_bytes(KEPT_BYTES)
        .with_max_chunk_bytes(MAX_READ_BYTES)
        .with_max_read_bytes(MAX_READ_BYTES)
        .with_max_object_header_bytes(MAX_HEADER_BYTES)
        .with_external_link_resolver(elsewhere.clone());
    let bytes = Arc::new(FileBytes(Arc::clone(&file)));
    let damaged = |key: &str, fault: hdf5_reader::error::Error| hdf5(path, key, &fault);
    let opened =
        Hdf5File::from_storage_with_options(bytes, limits).map_err(|fault| damaged("/", fault))?;
    let root = opened.root_group().map_err(|fault| damaged("/", fault))?;
    let mut walk = Walk {
        path,
        file: &opened,
        n_bytes: file.n_bytes(),
        arrays: Vec::new(),
        seen: HashMap::new(),
    };
    walk.group(&root, "", 0)?;
    let arrays = walk.arrays;
    let links = elsewhere.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(location) = links.first() {
        return Err(ContainerFault::External {
            path: path.into(),
            key: "an external link".into(),
            location: location.clone(),
            reason: "links out of the file are not followed",
        }
        .into());
    }
    let in_pieces = |array: &Array| matches!(array.storage, Storage::By(_));
    let kept = if arrays.iter().any(in_pieces) {
        KEPT_BYTES as u64
    } else {
        0
    };
    let file: Box<dyn ReadAt> = Box::new(file);
    let ranges = Ranges::new(path, Container::Hdf5, vec![file], &[], arrays);
    Ok(Box::new(ranges.keeping(kept)))
}

/// A fault that the library found.
fn hdf5(path: &Path, key: &str, fault: &hdf5_reader::error::Error) -> Error {
    ContainerFault::Hdf5 {
        path: path.into(),
        key: key.to_owned(),
        reason: fault.to_string(),
    }
    .into()
}

/// The bytes of a file, for the library.
struct FileBytes(Arc<dyn ReadAt>);

impl Bytes for FileBytes {
    fn len(&self) -> u64 {
        self.0.n_bytes()
    }

    fn read_range(&self, offset: u64, len: usize) -> hdf5_reader::error::Result<StorageBuffer> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.0.n_bytes()) {
            return Err(hdf5_reader::error::Error::UnexpectedEof {
                offset,
                needed: len as u64,
                available: self.0.n_bytes().saturating_sub(offset),
            });
        }
        if len > MAX_READ_BYTES {
            let what = format!("{len} bytes at {offset} are more than {MAX_READ_BYTES}");
            return Err(hdf5_reader::error::Error::InvalidData(what));
        }
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(StorageBuffer::from_vec(bytes))
    }
}

/// Files that links lead to. None is opened.
#[derive(Default)]
struct Elsewhere(Mutex<Vec<String>>);

impl ExternalLinkResolver for Elsewhere {
    fn resolve_external_link(
        &self,
        filename: &str,
    ) -> hdf5_reader::error::Result<Option<Hdf5File>> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if links.is_empty() {
            links.push(filename.to_owned());
        }
        Ok(None)
    }
}

struct Walk<'a> {
    path: &'a Path,
    file: &'a Hdf5File,
    n_bytes: u64,
    arrays: Vec<Array>,
    /// Objects by their places in the file, each with its name.
    seen: HashMap<u64, String>,
}

impl Walk<'_> {
    /// Notes an object. One that has several names would be several tensors, or a group without an end.
    fn note(&mut self, address: u64, name: &str) -> Result<()> {
        if self.seen.len() >= MAX_OBJECTS {
            let what = format!("more than {MAX_OBJECTS} groups and datasets");
            return Err(self.fault(name, what));
        }
        match self.seen.insert(address, name.to_owned()) {
            None => Ok(()),
            Some(other) => Err(self.fault(name, format!("it is `/{other}`, too"))),
        }
    }

    fn fault(&self, key: &str, reason: String) -> Error {
        ContainerFault::Hdf5 {
            path: self.path.into(),
            key: format!("/{key}"),
            reason,
        }
        .into()
    }

    fn group(&mut self, group: &Group, name: &str, depth: usize) -> Result<()> {
        self.note(group.address(), name)?;
        if depth >= MAX_DEPTH {
            return Err(self.fault(name, format!("groups {MAX_DEPTH} deep")));
        }
        let (groups, datasets) = group
            .members()
            .map_err(|fault| hdf5(self.path, &format!("/{name}"), &fault))?;
        let below = |child: &str| match name {
            "" => child.to_owned(),
            _ => format!("{name}/{child}"),
        };
        for dataset in datasets {
            let name = below(dataset.name());
            self.note(dataset.address(), &name)?;
            let array = self.array(dataset, name)?;
            self.arrays.push(array);
        }
        for child in groups {
            self.group(&child, &below(child.name()), depth + 1)?;
        }
        Ok(())
    }

    fn array(&self, dataset: Dataset, name: String) -> Result<Array> {
        let failed = |fault: hdf5_reader::error::Error| hdf5(self.path, &name, &fault);
        let unread = |what| -> Error {
            ContainerFault::Unread {
                path: self.path.into(),
                key: name.clone(),
                what,
            }
            .into()
        };
        let dtype =
            types::dtype_of(&dataset)
                .map_err(failed)?
                .map_err(|said| ContainerFault::DType {
                    path: self.path.into(),
                    key: name.clone(),
                    dtype: said,
                })?;
        let shape = dataset.shape().to_vec();
        let n_elements = dataset.num_elements().map_err(failed)?;
        if shape.is_empty() && n_elements == 0 {
            return Err(unread("a dataset without data"));
        }
        let n_bytes = n_elements.saturating_mul(dtype.size_bytes() as u64);
        let info = sized(self.path, &name, dtype, &shape, n_bytes)?;
        let header = (self.file.get_or_parse_header(dataset.address())).map_err(failed)?;
        let mut layout = None;
        for message in &header.messages {
            match message {
                HdfMessage::ExternalFiles(_) => return Err(unread("data in other files")),
                HdfMessage::DataLayout(found) => layout = Some(&found.layout),
                _ => {}
            }
        }
        let storage = match layout {
            Some(DataLayout::Compact { data }) if data.len() as u64 == n_bytes => {
                Storage::Held(data.clone())
            }
            Some(DataLayout::Compact { data }) => {
                return Err(ContainerFault::Size {
                    path: self.path.into(),
                    key: name,
                    shape,
                    n_bytes: data.len() as u64,
                }
                .into());
            }
            Some(DataLayout::Contiguous { address, .. }) => {
                // Addresses are counted from the superblock, before which users may have put something.
                let base = self.n_bytes.saturating_sub(self.file.storage().len());
                let start = address.checked_add(base);
                let end = start.and_then(|start| start.checked_add(n_bytes));
                match (start, end) {
                    _ if n_bytes == 0 => Storage::Held(Vec::new()),
                    (Some(start), Some(end)) if end <= self.n_bytes => {
                        Storage::Runs(0, vec![Run { start, n_bytes }])
                    }
                    _ => {
                        return Err(unread(
                            "data that were never written, or are beyond the end",
                        ));
                    }
                }
            }
            Some(DataLayout::Chunked { .. }) => Storage::By(Box::new(Pieces::new(
                dataset,
                info.shape.clone(),
                dtype.size_bytes(),
            ))),
            None => return Err(unread("a dataset whose place is not said")),
        };
        Ok(Array::in_order(name, info, storage))
    }
}
