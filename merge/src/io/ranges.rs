//! Arrays that lie as they are in files, or in memory: what containers of arrays become once their headers are read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::read_at::ReadAt;
use super::source::{Container, Root, SourceFile, SourceInfo, TensorEntry, TensorSource};
use super::torch::strided::{Span, Strided};
use crate::{ContainerFault, DType, Error, Result, TensorInfo};

/// Bytes that are read at once for a checksum.
const CHECK_BYTES: usize = 256 << 10;

/// Where the bytes of an array are.
pub(super) enum Storage {
    /// In a file, by its number, one run of bytes after the other.
    Runs(usize, Vec<Run>),
    /// In memory.
    Held(Vec<u8>),
    /// Wherever a reader of its own finds them.
    By(Box<dyn ReadAt>),
}

/// Bytes `start..start + n_bytes` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) n_bytes: u64,
}

/// An array: its name, what it is, and where.
pub(super) struct Array {
    pub(super) key: String,
    pub(super) name: String,
    pub(super) info: TensorInfo,
    pub(super) storage: Storage,
    /// The order of its elements in its storage.
    pub(super) elements: Strided,
    /// The checksum of bytes among which its own are.
    pub(super) check: Option<Check>,
}

/// A checksum of bytes of the first file, which is compared before the first of them is believed.
pub(super) struct Check {
    pub(super) entry: String,
    pub(super) run: Run,
    pub(super) crc: u32,
    is_done: Mutex<bool>,
}

impl Check {
    pub(super) fn new(entry: &str, run: Run, crc: u32) -> Self {
        Self {
            entry: entry.to_owned(),
            run,
            crc,
            is_done: Mutex::new(false),
        }
    }

    fn require(&self, path: &Path, file: &dyn ReadAt) -> Result<()> {
        let mut is_done = self.is_done.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_done {
            return Ok(());
        }
        let mut hasher = crc32fast::Hasher::new();
        let end = self.run.start + self.run.n_bytes;
        let (mut at, mut buffer) = (self.run.start, vec![0; CHECK_BYTES]);
        while at < end {
            let n = (end - at).min(CHECK_BYTES as u64) as usize;
            (file.read_part(&mut buffer[..n], at, self.run.start..end))
                .map_err(|source| Error::io("read", path, source))?;
            hasher.update(&buffer[..n]);
            at += n as u64;
        }
        let computed = hasher.finalize();
        if computed != self.crc {
            return Err(ContainerFault::Checksum {
                path: path.into(),
                entry: self.entry.clone(),
                stored: self.crc,
                computed,
            }
            .into());
        }
        *is_done = true;
        Ok(())
    }
}

impl Array {
    /// An array whose elements are in order.
    pub(super) fn in_order(name: String, info: TensorInfo, storage: Storage) -> Self {
        let elements = Strided::new(0, &[info.n_elements()], &[1]);
        Self {
            key: name.clone(),
            name,
            info,
            storage,
            elements,
            check: None,
        }
    }
}

/// Distances of neighbors along each axis of an array in row-major order.
pub(crate) fn row_major(shape: &[usize]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as u64;
    }
    strides
}

/// The dtype and the shape of an array, if its elements are as many bytes as it has.
///
/// # Errors
/// [`ContainerFault::Size`].
pub(super) fn sized(
    path: &Path,
    key: &str,
    dtype: DType,
    shape: &[u64],
    n_bytes: u64,
) -> Result<TensorInfo> {
    // With every size as at least one, so that no product of some of them overflows either.
    let fits = (shape.iter().map(|&size| size.max(1)))
        .try_fold(1u64, u64::checked_mul)
        .and_then(|n| n.checked_mul(8))
        .is_some_and(|n| i64::try_from(n).is_ok());
    let sizes: Option<Vec<usize>> = shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    let info = sizes
        .filter(|_| fits)
        .map(|shape| TensorInfo { dtype, shape });
    let info = info.filter(|info| info.n_bytes() == n_bytes);
    info.ok_or_else(|| {
        ContainerFault::Size {
            path: path.into(),
            key: key.to_owned(),
            shape: shape.to_vec(),
            n_bytes,
        }
        .into()
    })
}

/// The arrays of one or several files.
pub(super) struct Ranges {
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    storages: Vec<(Storage, Strided, Option<Check>)>,
    files: Vec<Box<dyn ReadAt>>,
    /// Bytes that readers keep in memory.
    kept_bytes: u64,
}

impl Ranges {
    /// Of files, the first of which is `path`; `others` are the paths of those behind it.
    pub(super) fn new(
        path: &Path,
        container: Container,
        files: Vec<Box<dyn ReadAt>>,
        others: &[PathBuf],
        arrays: Vec<Array>,
    ) -> Self {
        let paths = std::iter::once(path).chain(others.iter().map(PathBuf::as_path));
        let opened = files.iter().zip(paths);
        let info = SourceInfo {
            path: path.into(),
            container,
            files: opened
                .map(|(file, path)| SourceFile::of(path, file.as_ref()))
                .collect(),
            metadata: Default::default(),
            roots: vec![Root {
                name: String::new(),
                n_tensors: arrays.len(),
                n_bytes: arrays.iter().map(|array| array.info.n_bytes()).sum(),
            }],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        };
        let (entries, storages) = (arrays.into_iter())
            .map(|array| {
                let entry = TensorEntry::renamed(array.key, array.name, array.info);
                (entry, (array.storage, array.elements, array.check))
            })
            .unzip();
        Self {
            info,
            entries,
            storages,
            files,
            kept_bytes: 0,
        }
    }

    /// Whose readers keep this number of bytes in memory.
    pub(super) fn keeping(self, kept_bytes: u64) -> Self {
        Self { kept_bytes, ..self }
    }
}

impl TensorSource for Ranges {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn is_computed(&self, index: usize) -> bool {
        self.storages[index].1.contiguous().is_none()
    }

    fn held_bytes(&self) -> u64 {
        self.kept_bytes
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let entry = &self.entries[index];
        let size = entry.info.dtype.size_bytes();
        let (storage, elements, check) = &self.storages[index];
        if let Some(check) = check {
            check.require(&self.info.path, self.files[0].as_ref())?;
        }
        let joined;
        let source: &dyn ReadAt = match storage {
            Storage::Held(bytes) => bytes,
            Storage::By(reader) => reader.as_ref(),
            Storage::Runs(file, runs) => {
                joined = Joined {
                    file: self.files[*file].as_ref(),
                    runs,
                };
                &joined
            }
        };
        let read = match elements.contiguous() {
            Some(start) => source.read_exact_at(out, (start + first as u64) * size as u64),
            None => {
                let span = Span {
                    source,
                    start: 0,
                    n_bytes: source.n_bytes(),
                };
                elements.read(span, size, first as u64, out)
            }
        };
        read.map_err(|source| {
            ContainerFault::ReadTensor {
                path: self.info.path.clone(),
                key: entry.path.to_string(),
                source,
            }
            .into()
        })
    }
}

/// Runs of bytes of a file as one.
struct Joined<'a> {
    file: &'a dyn ReadAt,
    runs: &'a [Run],
}

impl ReadAt for Joined<'_> {
    fn n_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.n_bytes).sum()
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut at, mut rest, mut begin) = (offset, out, 0);
        for run in self.runs {
            let end = begin + run.n_bytes;
            if !rest.is_empty() && at < end {
                let n = (end - at).min(rest.len() as u64);
                let (part, after) = rest.split_at_mut(n as usize);
                let whole = run.start..run.start + run.n_bytes;
                self.file.read_part(part, run.start + at - begin, whole)?;
                (at, rest) = (at + n, after);
            }
            begin = end;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
