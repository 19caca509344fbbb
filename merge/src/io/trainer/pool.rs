//! Files of which few are open at a time, for a model may lie in more of them than a process may open.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::io::read_at::{FileAt, ReadAt};
use crate::io::source::Stamp;
use crate::{Error, Result};

/// How many files are open at a time; a process may often open 1024, and two models may be read at once.
const MOST_OPEN: usize = 128;

/// Open files, the last used at the end.
#[derive(Default)]
pub(crate) struct Pool(Mutex<VecDeque<(PathBuf, Arc<FileAt>)>>);

impl Pool {
    /// Opens a file, which is closed and opened again as others are read.
    pub(crate) fn open(self: &Arc<Self>, path: &Path) -> Result<PooledFile> {
        let failed = |source| Error::io("open", path, source);
        // Asked first, for opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::UnknownFormat {
                path: path.into(),
                looks_like: "is not a regular file".into(),
            });
        }
        let file = Arc::new(File::open(path).and_then(FileAt::new).map_err(failed)?);
        let pooled = PooledFile {
            pool: self.clone(),
            path: path.into(),
            n_bytes: file.n_bytes(),
            stamp: file.stamp(),
        };
        self.keep(path, file);
        Ok(pooled)
    }

    fn keep(&self, path: &Path, file: Arc<FileAt>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back((path.into(), file));
        if open.len() > MOST_OPEN {
            open.pop_front();
        }
    }

    fn find(&self, path: &Path) -> Option<Arc<FileAt>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let position = open.iter().position(|(other, _)| other == path)?;
        let (path, file) = open.remove(position)?;
        open.push_back((path, file.clone()));
        Some(file)
    }
}

/// A file that is open while it is read.
#[derive(Clone)]
pub(crate) struct PooledFile {
    pool: Arc<Pool>,
    path: PathBuf,
    n_bytes: u64,
    stamp: Option<Stamp>,
}

impl ReadAt for PooledFile {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(file) = self.pool.find(&self.path) {
            return file.read_exact_at(out, offset);
        }
        let file = Arc::new(File::open(&self.path).and_then(FileAt::new)?);
        if file.stamp() != self.stamp {
            return Err(io::Error::other("the file changed while it was read"));
        }
        self.pool.keep(&self.path, file.clone());
        file.read_exact_at(out, offset)
    }
}

/// A part of a file, as a file of its own.
pub(crate) struct Window {
    file: PooledFile,
    start: u64,
    n_bytes: u64,
}

impl Window {
    /// The bytes `start..start + n_bytes`, which must be within the file.
    pub(crate) fn new(file: PooledFile, start: u64, n_bytes: u64) -> Self {
        debug_assert!(start + n_bytes <= file.n_bytes());
        Self {
            file,
            start,
            n_bytes,
        }
    }
}

impl ReadAt for Window {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let is_inside =
            (offset.checked_add(out.len() as u64)).is_some_and(|end| end <= self.n_bytes);
        match is_inside {
            true => self.file.read_exact_at(out, self.start + offset),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_may_be_open_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Arc::new(Pool::default());
        let files: Vec<PooledFile> = (0..MOST_OPEN + 40)
            .map(|number| {
                let path = folder.path().join(number.to_string());
                std::fs::write(&path, [number as u8, 7]).expect("written");
                pool.open(&path).expect("opened")
            })
            .collect();
        for _ in 0..2 {
            for (number, file) in files.iter().enumerate() {
                let mut byte = [0];
                file.read_exact_at(&mut byte, 0).expect("read");
                assert_eq!(byte, [number as u8]);
            }
        }
        assert_eq!(pool.0.lock().expect("not poisoned").len(), MOST_OPEN);
    }

    #[test]
    fn a_file_that_changed_is_not_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Arc::new(Pool::default());
        let path = folder.path().join("file");
        std::fs::write(&path, b"one").expect("written");
        let file = pool.open(&path).expect("opened");
        pool.0.lock().expect("not poisoned").clear();
        std::fs::write(&path, b"other").expect("written");
        assert!(file.read_exact_at(&mut [0], 0).is_err());
    }

    #[test]
    fn a_window_ends_where_it_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789").expect("written");
        let file = Arc::new(Pool::default()).open(&path).expect("opened");
        let window = Window::new(file, 2, 4);
        let mut out = [0; 4];
        window.read_exact_at(&mut out, 0).expect("read");
        assert_eq!(&out, b"2345");
        assert!(window.read_exact_at(&mut out, 1).is_err());
    }
}
