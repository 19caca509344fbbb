//! Files of `torch.save`: the zip archives since 1.6 and the streams before it.
//!
//! A file is opened by reading its directory and its pickle, as data: [`pickle`] runs the opcodes
//! into an [`Arena`] of values, [`contents`] finds the tensors in it, [`roots`] those that are the
//! weights. Every offset is then compared with the file. Data are read on request, [`strided`].

pub(super) mod archive;
mod byte_stream;
mod callables;
mod checksum;
mod contents;
mod distributed;
mod fault;
mod layout;
mod legacy;
mod literal;
mod memo;
mod pickle;
mod rebuild;
mod roots;
mod script;
mod source;
pub(super) mod strided;
mod taking;
mod tensor;
mod typed;
mod value;

pub(crate) use distributed::Part;
pub use fault::{PickleCall, PickleFault, ScriptFault, ZipFault};
pub(crate) use roots::choose as choose_root;
pub(crate) use taking::Taker;
pub(crate) use tensor::ElementType;
pub(crate) use typed::View;

use std::collections::BTreeMap;
use std::path::Path;

use archive::{Archive, ArchiveError};
use byte_stream::ByteStream;
use contents::{Contents, WalkError};
use distributed::{PartFault, Parts};
use layout::{Layout, Storage};
use legacy::LegacyError;
use memo::Recalled;
use pickle::{Failure, PICKLE_LIMIT_BYTES};
use source::TorchSource;
use value::{Arena, Id};

use crate::io::read_at::ReadAt;
use crate::io::{Container, ObjectPath, OpenOptions, TensorSource};
use crate::{Error, Result, TorchFault, TrainerFault};

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
/// When the file is damaged, holds values that are not supported, or calls a function that is not known to be
/// harmless; nothing of it is run.
pub(crate) fn open(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    let (opened, _) = open_as(path, source, options, require_whole)?;
    Ok(opened)
}

/// Opens a torch file, and gives its objects beside the tensors.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_with_objects(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(Box<dyn TensorSource>, Pickle)> {
    open_as(path, source, options, require_whole)
}

/// The objects of a pickle, read but not run.
pub(crate) struct Pickle {
    arena: Arena,
    root: Id,
}

impl Pickle {
    /// The root object.
    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.arena, self.root)
    }
}

/// Longest file that is one bare pickle: the metadata of several million pieces.
const PLAIN_LIMIT_BYTES: u64 = 1 << 30;

/// Memory that the values of such a file may take that are not taken out of it.
const PLAIN_MEMORY_BYTES: u64 = 40 << 20;

/// Reads a file that is one bare pickle, twice: first for the values that it refers to more than once. Values that `taker`
/// takes need no memory here; the others are bounded.
///
/// # Errors
/// As [`open`]; `entry` is what errors call the pickle.
pub(crate) fn read_pickle(
    path: &Path,
    entry: &str,
    file: &dyn ReadAt,
    taker: &mut dyn Taker,
) -> Result<Pickle> {
    let stream = || ByteStream::new(file, 0, file.n_bytes(), PLAIN_LIMIT_BYTES);
    let failed = |failure| failed(path, entry, failure);
    let recalled = Recalled::of(&mut stream());
    let recalled = recalled.map_err(|fault| failed(Failure::Fault(0, fault)))?;
    let (arena, root) =
        pickle::read_taking(&mut stream(), PLAIN_MEMORY_BYTES, recalled, taker).map_err(failed)?;
    Ok(Pickle { arena, root })
}

/// A file of one process of several, with parts of tensors.
pub(crate) struct RankFile {
    /// All tensors of the file: whole ones and boxes of others.
    pub(crate) source: Box<dyn TensorSource>,
    /// The tensors that the file holds parts of, with the numbers of their boxes in `source`.
    pub(crate) parts: Vec<(ObjectPath, Part)>,
}

/// Opens the torch file of process `rank` of several.
///
/// # Errors
/// As [`open`], and if a part of a tensor is not understood.
pub(crate) fn open_rank(path: &Path, file: Box<dyn ReadAt>, rank: usize) -> Result<RankFile> {
    let mut parts = Vec::new();
    // The names of all tensors are those from the root object on.
    let options = OpenOptions {
        root: Some(String::new()),
        ..OpenOptions::default()
    };
    let (source, _) = open_as(path, file, &options, |path, arena, contents| {
        parts = rank_parts(path, arena, contents, rank)?;
        Ok(())
    })?;
    Ok(RankFile { source, parts })
}

/// The parts of tensors among the contents of a file, whose boxes become tensors of the file.
fn rank_parts(
    path: &Path,
    arena: &Arena,
    contents: &mut Contents,
    rank: usize,
) -> Result<Vec<(ObjectPath, Part)>> {
    let mut reader = Parts::new(Some(rank));
    let distributed = std::mem::take(&mut contents.distributed);
    (distributed.into_iter())
        .map(|(key, id)| {
            let mut part =
                (reader.part(arena, id)).map_err(|fault| part_error(path, &key, fault))?;
            for (tensor, _) in &mut part.boxes {
                contents.tensors.push((key.clone(), *tensor));
                *tensor = contents.tensors.len() as u32 - 1;
            }
            Ok((key, part))
        })
        .collect()
}

/// Makes tensors of those tensors in parts of which the file holds all.
fn require_whole(path: &Path, arena: &Arena, contents: &mut Contents) -> Result<()> {
    let mut reader = Parts::new(None);
    for (key, id) in std::mem::take(&mut contents.distributed) {
        let part = (reader.part(arena, id)).map_err(|fault| part_error(path, &key, fault))?;
        match part.boxes[..] {
            [(tensor, _)] if arena.tensors[tensor as usize].sizes == part.shape => {
                contents.tensors.push((key, tensor));
            }
            _ => {
                return Err(TrainerFault::PartOfTensor {
                    path: path.into(),
                    key: key.to_string(),
                    rank: part.rank,
                    shape: part.shape,
                }
                .into());
            }
        }
    }
    Ok(())
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

/// Opens a file; `with_parts` says what becomes of tensors that it holds parts of.
fn open_as(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
    with_parts: impl FnOnce(&Path, &Arena, &mut Contents) -> Result<()>,
) -> Result<(Box<dyn TensorSource>, Pickle)> {
    let mut start = [0; 16];
    let n_start = source.n_bytes().min(16) as usize;
    source
        .read_exact_at(&mut start[..n_start], 0)
        .map_err(|source| io_error(path, source))?;
    let (opened, pickle) = match sniff(&start[..n_start]) {
        Some(Container::TorchZip) => open_zip(path, source, options, with_parts)?,
        _ => open_legacy(path, source, options, with_parts)?,
    };
    Ok((Box::new(opened), pickle))
}

fn open_zip(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
    with_parts: impl FnOnce(&Path, &Arena, &mut Contents) -> Result<()>,
) -> Result<(TorchSource, Pickle)> {
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
    let mut contents =
        contents::walk(&arena, root).map_err(|error| walk_error(path, &name, error))?;
    with_parts(path, &arena, &mut contents)?;
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
    Ok((opened, Pickle { arena, root }))
}

fn open_legacy(
    path: &Path,
    source: Box<dyn ReadAt>,
    options: &OpenOptions,
    with_parts: impl FnOnce(&Path, &Arena, &mut Contents) -> Result<()>,
) -> Result<(TorchSource, Pickle)> {
    let legacy = legacy::read(&*source)
        .map_err(|LegacyError { part, failure }| failed(path, part, failure))?;
    let mut contents = contents::walk(&legacy.arena, legacy.root)
        .map_err(|error| walk_error(path, "object", error))?;
    with_parts(path, &legacy.arena, &mut contents)?;
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
    let (arena, root) = (legacy.arena, legacy.root);
    Ok((opened, Pickle { arena, root }))
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

fn part_error(path: &Path, key: &ObjectPath, fault: PartFault) -> Error {
    let (path, key) = (path.into(), key.to_string());
    Error::from(match fault {
        PartFault::Value(fault) => TrainerFault::Part { path, key, fault },
        PartFault::Placement(placement) => TrainerFault::Placement {
            path,
            key,
            placement,
        },
        PartFault::Coordinates => TrainerFault::Mesh { path, key },
        PartFault::Size { found, wanted } => TrainerFault::PartSize {
            path,
            key,
            found,
            wanted,
        },
    })
}

fn unsupported(path: &Path, object_path: &ObjectPath, kind: &'static str) -> Error {
    Error::Torch(TorchFault::UnsupportedTensor {
        path: path.into(),
        key: object_path.to_string(),
        kind,
    })
}

pub(super) fn archive_error(path: &Path, error: ArchiveError) -> Error {
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
