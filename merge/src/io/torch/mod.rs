//! Files of `torch.save`: the zip archives since 1.6 and the streams before it.
//!
//! A file is opened by reading its directory and its pickle, as data: [`pickle`] runs the opcodes
//! into an [`Arena`] of values, [`contents`] finds the tensors in it, [`roots`] those that are the
//! weights. Every offset is then compared with the file. Data are read on request, [`strided`].

mod archive;
mod byte_stream;
mod callables;
mod checksum;
mod contents;
mod fault;
mod layout;
mod legacy;
mod literal;
mod pickle;
mod rebuild;
mod roots;
mod script;
mod source;
mod strided;
mod tensor;
mod value;
mod view;

pub use fault::{PickleCall, PickleFault, ScriptFault, ZipFault};
pub(crate) use view::{Objects, View};

use std::collections::BTreeMap;
use std::path::Path;

use archive::{Archive, ArchiveError};
use byte_stream::ByteStream;
use contents::WalkError;
use layout::{Layout, Storage};
use legacy::LegacyError;
use pickle::{Failure, PICKLE_LIMIT_BYTES};
use source::TorchSource;

use crate::io::read_at::ReadAt;
use crate::io::{Container, ObjectPath, OpenOptions, TensorSource};
use crate::{Error, Result, TorchFault};

/// Tells a torch file by its first bytes; at least 16 should be given if the file has them.
pub(crate) fn sniff(first_bytes: &[u8]) -> Option<Container> {
    match first_bytes {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Container::TorchZip),
        // The length of a safetensors header can look like the start of a pickle.
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => None,
        [0x80, 0..=5, ..] => Some(Container::TorchLegacy),
        _ if first_bytes.starts_with(b"L1195470371460388") => Some(Container::TorchLegacy),
        _ => None,
    }
}

/// Opens a torch file of either kind.
///
/// # Errors
/// When the file is damaged, holds what is not supported, or calls what is not known to be
/// harmless; nothing of it is run.
pub(crate) fn open(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    let (opened, _) = open_source(path, source, options)?;
    Ok(Box::new(opened))
}

/// Opens a torch file, and gives what it holds beside tensors.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_with_objects(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(Box<dyn TensorSource>, Objects)> {
    let (opened, objects) = open_source(path, source, options)?;
    Ok((Box::new(opened), objects))
}

/// Opens a torch file that is in memory, as the fuzz targets and tests do.
///
/// # Errors
/// As for a file.
#[doc(hidden)]
pub fn open_bytes(bytes: Vec<u8>, options: &OpenOptions) -> Result<Box<dyn TensorSource>> {
    open(Path::new("(memory)"), Box::new(bytes), options)
}

/// Reads bytes as one bare pickle and walks what it holds, as the fuzz target does; gives the
/// number of tensors.
///
/// # Errors
/// As for the pickle of a file.
#[doc(hidden)]
pub fn walk_pickle(bytes: Vec<u8>) -> Result<usize> {
    let path = Path::new("(memory)");
    let mut stream = ByteStream::new(&bytes, 0, bytes.n_bytes(), PICKLE_LIMIT_BYTES);
    let (arena, root) =
        pickle::read(&mut stream).map_err(|failure| failed(path, "pickle", failure))?;
    let contents =
        contents::walk(&arena, root).map_err(|error| walk_error(path, "pickle", error))?;
    Ok(contents.tensors.len())
}

fn open_source(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(TorchSource, Objects)> {
    let mut start = [0; 16];
    let n_start = source.n_bytes().min(16) as usize;
    source
        .read_exact_at(&mut start[..n_start], 0)
        .map_err(|source| io_error(path, source))?;
    match sniff(&start[..n_start]) {
        Some(Container::TorchZip) => open_zip(path, source, options),
        _ => open_legacy(path, source, options),
    }
}

fn open_zip(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(TorchSource, Objects)> {
    let archive = Archive::open(&*source).map_err(|error| archive_error(path, error))?;
    let missing = |entry: String| {
        Error::Torch(TorchFault::MissingEntry {
            path: path.into(),
            entry,
        })
    };
    let name = archive.name_of("data.pkl");
    let entry = archive
        .get("data.pkl")
        .ok_or_else(|| missing(name.clone()))?;
    let bytes = archive
        .read(entry, PICKLE_LIMIT_BYTES)
        .map_err(|error| archive_error(path, error))?;
    let mut stream = ByteStream::new(&bytes, 0, bytes.n_bytes(), PICKLE_LIMIT_BYTES);
    let (arena, root) =
        pickle::read(&mut stream).map_err(|failure| failed(path, &name, failure))?;
    drop(bytes);
    let contents = contents::walk(&arena, root).map_err(|error| walk_error(path, &name, error))?;
    let metadata = archive
        .metadata()
        .map_err(|error| archive_error(path, error))?;
    let layout = Layout::new(path, &arena, &contents, |storage| {
        let record = format!("data/{}", storage.key);
        let entry = (archive.get(&record)).ok_or_else(|| missing(archive.name_of(&record)))?;
        let start = archive
            .data_start(entry)
            .map_err(|error| archive_error(path, error))?;
        Ok(Storage::new(&entry.name, start, entry.n_bytes, entry.crc))
    })?;
    drop(archive);
    let opened = TorchSource::new(
        path,
        Container::TorchZip,
        source,
        contents,
        layout,
        metadata,
        options,
    )?;
    Ok((opened, Objects::new(arena, root)))
}

fn open_legacy(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(TorchSource, Objects)> {
    let legacy = legacy::read(&*source)
        .map_err(|LegacyError { part, failure }| failed(path, part, failure))?;
    let contents = contents::walk(&legacy.arena, legacy.root)
        .map_err(|error| walk_error(path, "object", error))?;
    let layout = Layout::new(path, &legacy.arena, &contents, |storage| {
        let (start, n_bytes) = *(legacy.storages.get(&*storage.key)).ok_or_else(|| {
            Error::Torch(TorchFault::MissingEntry {
                path: path.into(),
                entry: format!("storage {}", storage.key),
            })
        })?;
        let skipped = storage
            .first
            .saturating_mul(storage.element.size_bytes() as u64)
            .min(n_bytes);
        let name = format!("storage {}", storage.key);
        Ok(Storage::new(
            &name,
            start + skipped,
            n_bytes - skipped,
            None,
        ))
    })?;
    let opened = TorchSource::new(
        path,
        Container::TorchLegacy,
        source,
        contents,
        layout,
        BTreeMap::new(),
        options,
    )?;
    Ok((opened, Objects::new(legacy.arena, legacy.root)))
}

fn failed(path: &Path, entry: &str, failure: Failure) -> Error {
    match failure {
        Failure::Fault(offset, fault) => pickle_error(path, entry, offset, fault),
        Failure::Refused(calls) => Error::Torch(TorchFault::UnsafePickle {
            path: path.into(),
            entry: entry.into(),
            calls,
        }),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::io("read", path, source)
}

fn pickle_error(path: &Path, entry: &str, offset: u64, fault: PickleFault) -> Error {
    Error::Torch(TorchFault::Pickle {
        path: path.into(),
        entry: entry.into(),
        offset,
        fault,
    })
}

fn walk_error(path: &Path, entry: &str, error: WalkError) -> Error {
    match error {
        WalkError::Fault(fault) => pickle_error(path, entry, 0, fault),
        WalkError::Unsupported(object_path, kind) => unsupported(path, &object_path, kind),
        WalkError::Script(object_path, class, fault) => Error::Torch(TorchFault::Script {
            path: path.into(),
            key: object_path.to_string(),
            class,
            fault,
        }),
        WalkError::DuplicateKey(object_path) => Error::DuplicateKey {
            path: path.into(),
            key: object_path.to_string(),
        },
    }
}

fn unsupported(path: &Path, object_path: &ObjectPath, kind: &'static str) -> Error {
    Error::Torch(TorchFault::UnsupportedTensor {
        path: path.into(),
        key: object_path.to_string(),
        kind,
    })
}

fn archive_error(path: &Path, error: ArchiveError) -> Error {
    match error {
        ArchiveError::Io(source) => io_error(path, source),
        ArchiveError::Fault(entry, fault) => Error::Torch(TorchFault::Zip {
            path: path.into(),
            entry,
            fault,
        }),
        ArchiveError::Checksum {
            entry,
            stored,
            computed,
        } => Error::Torch(TorchFault::Checksum {
            path: path.into(),
            entry,
            stored,
            computed,
        }),
    }
}
