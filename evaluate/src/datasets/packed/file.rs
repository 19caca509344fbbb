//! A packed file that is read by position, open or not.

use std::ops::Range;
use std::path::{Path, PathBuf};

use merge::io::FileBytes;

use crate::{Error, Result};

/// A file of a split. Systems let a program open a thousand files, and a split may have more: only some stay open.
#[derive(Debug)]
pub(in crate::datasets) struct PackedFile {
    path: PathBuf,
    n_bytes: u64,
    open: Option<FileBytes>,
}

impl PackedFile {
    /// Opens a file by its path or address.
    pub(in crate::datasets) fn open(path: &Path) -> Result<Self> {
        let file = FileBytes::open(path)?;
        Ok(Self {
            path: path.into(),
            n_bytes: file.n_bytes(),
            open: Some(file),
        })
    }

    /// Closes it until it is read again, each time.
    pub(in crate::datasets) fn close(&mut self) {
        self.open = None;
    }

    pub(in crate::datasets) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::datasets) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The bytes of a range. The caller bounds its length.
    pub(in crate::datasets) fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        if let Some(file) = &self.open {
            return Ok(file.read(range)?);
        }
        let file = FileBytes::open(&self.path)?;
        if file.n_bytes() != self.n_bytes {
            let changed = std::io::Error::other("it has changed since it was opened");
            return Err(Error::io("read", &self.path, changed));
        }
        Ok(file.read(range)?)
    }
}
