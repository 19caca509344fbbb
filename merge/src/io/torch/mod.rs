//! Files of `torch.save`: the zip archives since 1.6 and the streams before it.
//!
//! A file is opened by reading its directory and its pickle, as data: [`pickle`] runs the opcodes
//! into an [`Arena`] of values, [`contents`] finds the tensors in it, [`roots`] those that are the
//! weights. Every offset is then compared with the file. Data are read on request, [`strided`].

mod archive;
mod callables;
mod contents;
mod fault;
mod legacy;
mod pickle;
mod read_at;
mod rebuild;
mod roots;
mod strided;
mod tensor;
mod value;

pub use fault::{PickleCall, PickleFault, ZipFault};

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use archive::{Archive, ArchiveError};
use contents::{Contents, WalkError};
use legacy::LegacyError;
use pickle::{Failure, PICKLE_LIMIT_BYTES};
use read_at::{ByteStream, FileAt, ReadAt};
use strided::{Span, Strided};
use tensor::{ElementType, StorageRef};
use value::Arena;

use crate::io::{
    Container, ObjectPath, OpenOptions, SourceFile, SourceInfo, TensorEntry, TensorSource,
};
use crate::{Error, Result, TensorInfo};

/// How far the values of a tensor may exceed its storage, as those of an expanded one do.
const EXPANSION_LIMIT_BYTES: u64 = 1 << 30;

/// Bytes that are read at once to compute a checksum.
const CHECK_BYTES: usize = 256 << 10;

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
    file: File,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    let source = FileAt::new(file).map_err(|source| io_error(path, source))?;
    open_source(path, Box::new(source), options)
}

/// Opens a torch file that is in memory, as the fuzz targets and tests do.
///
/// # Errors
/// As for a file.
#[doc(hidden)]
pub fn open_bytes(bytes: Vec<u8>, options: &OpenOptions) -> Result<Box<dyn TensorSource>> {
    open_source(Path::new("(memory)"), Box::new(bytes), options)
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
) -> Result<Box<dyn TensorSource>> {
    let mut start = [0; 16];
    let n_start = source.n_bytes().min(16) as usize;
    source
        .read_exact_at(&mut start[..n_start], 0)
        .map_err(|source| io_error(path, source))?;
    let opened = match sniff(&start[..n_start]) {
        Some(Container::TorchZip) => open_zip(path, source, options)?,
        _ => open_legacy(path, source, options)?,
    };
    Ok(Box::new(opened))
}

fn open_zip(path: &Path, source: Box<dyn ReadAt>, options: &OpenOptions) -> Result<TorchSource> {
    let archive = Archive::open(&*source).map_err(|error| archive_error(path, error))?;
    let missing = |entry: String| Error::MissingEntry {
        path: path.into(),
        entry,
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
    TorchSource::new(
        path,
        Container::TorchZip,
        source,
        contents,
        layout,
        metadata,
        options,
    )
}

fn open_legacy(path: &Path, source: Box<dyn ReadAt>, options: &OpenOptions) -> Result<TorchSource> {
    let legacy = legacy::read(&*source)
        .map_err(|LegacyError { part, failure }| failed(path, part, failure))?;
    let contents = contents::walk(&legacy.arena, legacy.root)
        .map_err(|error| walk_error(path, "object", error))?;
    let layout = Layout::new(path, &legacy.arena, &contents, |storage| {
        let (start, n_bytes) =
            *(legacy.storages.get(&*storage.key)).ok_or_else(|| Error::MissingEntry {
                path: path.into(),
                entry: format!("storage {}", storage.key),
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
    TorchSource::new(
        path,
        Container::TorchLegacy,
        source,
        contents,
        layout,
        BTreeMap::new(),
        options,
    )
}

fn failed(path: &Path, entry: &str, failure: Failure) -> Error {
    match failure {
        Failure::Fault(offset, fault) => pickle_error(path, entry, offset, fault),
        Failure::Refused(calls) => Error::UnsafePickle {
            path: path.into(),
            entry: entry.into(),
            calls,
        },
    }
}

/// A storage in the file.
struct Storage {
    /// Name of its entry, for errors.
    entry: String,
    start: u64,
    n_bytes: u64,
    /// The CRC-32 it should have.
    crc: Option<u32>,
    /// The CRC-32 it has, once that is known.
    computed: Mutex<Option<u32>>,
}

impl Storage {
    fn new(entry: &str, start: u64, n_bytes: u64, crc: Option<u32>) -> Self {
        Self {
            entry: entry.into(),
            start,
            n_bytes,
            crc,
            computed: Mutex::new(None),
        }
    }
}

/// A tensor in its storage.
struct Placed {
    /// Index into [`Layout::storages`].
    storage: usize,
    elements: Strided,
}

/// Where the tensors of a file lie.
#[derive(Default)]
struct Layout {
    storages: Vec<Storage>,
    /// For each tensor of [`Contents`], in the same order: where it lies and what it is.
    tensors: Vec<(Placed, TensorInfo)>,
}

impl Layout {
    /// Places every tensor and compares it with its storage, which `find` looks up.
    fn new(
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
                return Err(Error::TensorOutOfStorage {
                    path: path.into(),
                    key: object_path.to_string(),
                    entry: layout.storages[storage].entry.clone(),
                    needs,
                    has,
                });
            }
            if info.n_bytes() > has.saturating_add(EXPANSION_LIMIT_BYTES) {
                return Err(Error::TensorExpanded {
                    path: path.into(),
                    key: object_path.to_string(),
                    n_bytes: info.n_bytes(),
                    has,
                });
            }
            layout.tensors.push((Placed { storage, elements }, info));
        }
        Ok(layout)
    }
}

/// An open torch file.
struct TorchSource {
    source: Box<dyn ReadAt>,
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    placed: Vec<Placed>,
    storages: Vec<Storage>,
}

impl TorchSource {
    fn new(
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

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action: "read",
        path: path.into(),
        source,
    }
}

fn pickle_error(path: &Path, entry: &str, offset: u64, fault: PickleFault) -> Error {
    Error::Pickle {
        path: path.into(),
        entry: entry.into(),
        offset,
        fault,
    }
}

fn walk_error(path: &Path, entry: &str, error: WalkError) -> Error {
    match error {
        WalkError::Fault(fault) => pickle_error(path, entry, 0, fault),
        WalkError::Unsupported(object_path, kind) => unsupported(path, &object_path, kind),
        WalkError::DuplicateKey(object_path) => Error::DuplicateKey {
            path: path.into(),
            key: object_path.to_string(),
        },
    }
}

fn unsupported(path: &Path, object_path: &ObjectPath, kind: &'static str) -> Error {
    Error::UnsupportedTensor {
        path: path.into(),
        key: object_path.to_string(),
        kind,
    }
}

fn archive_error(path: &Path, error: ArchiveError) -> Error {
    match error {
        ArchiveError::Io(source) => io_error(path, source),
        ArchiveError::Fault(entry, fault) => Error::Zip {
            path: path.into(),
            entry,
            fault,
        },
        ArchiveError::Checksum {
            entry,
            stored,
            computed,
        } => Error::Checksum {
            path: path.into(),
            entry,
            stored,
            computed,
        },
    }
}
