//! Bytes read by position: from a file, from memory, or from far away.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::source::Stamp;
use crate::platform;

/// Something whose bytes can be read at any position by many threads at once.
pub(crate) trait ReadAt: Send + Sync {
    /// The size when it was opened.
    fn n_bytes(&self) -> u64;

    /// Fills `out` from byte `offset` on.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;

    /// As [`ReadAt::read_exact_at`], by a caller who is going to read all of `whole`: bytes that are far
    /// away may be fetched in larger pieces of it, but nothing beyond it need be.
    fn read_part(&self, out: &mut [u8], offset: u64, whole: Range<u64>) -> io::Result<()> {
        debug_assert!(whole.start <= offset && offset + out.len() as u64 <= whole.end);
        self.read_exact_at(out, offset)
    }

    /// The server's name for this version of the file.
    fn etag(&self) -> Option<String> {
        None
    }

    /// The facts that tell whether a file of this machine is still the one that was opened.
    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

impl ReadAt for Arc<dyn ReadAt> {
    fn n_bytes(&self) -> u64 {
        (**self).n_bytes()
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(out, offset)
    }

    fn read_part(&self, out: &mut [u8], offset: u64, whole: Range<u64>) -> io::Result<()> {
        (**self).read_part(out, offset, whole)
    }

    fn etag(&self) -> Option<String> {
        (**self).etag()
    }

    fn stamp(&self) -> Option<Stamp> {
        (**self).stamp()
    }
}

/// An open file: positioned reads share one descriptor and no cursor.
pub(crate) struct FileAt {
    file: File,
    n_bytes: u64,
    stamp: Stamp,
}

impl FileAt {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            stamp: Stamp::of_file(&file, &metadata)?,
            n_bytes: metadata.len(),
            file,
        })
    }
}

impl ReadAt for FileAt {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn stamp(&self) -> Option<Stamp> {
        Some(self.stamp)
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        platform::read_exact_at(&self.file, out, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn n_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start
            .checked_add(out.len())
            .and_then(|end| self.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}
