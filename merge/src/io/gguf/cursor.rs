//! Reading the header of a file from its first byte on, without more of it in memory than one window.

use std::path::Path;

use crate::io::read_at::ReadAt;
use crate::{Error, GgufFault, Result};

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 16;

/// The longest header that is read: several times that of the largest vocabularies.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A place in the header.
pub(super) struct Cursor<'a> {
    pub(super) path: &'a Path,
    file: &'a dyn ReadAt,
    /// Where the header ends at the latest.
    end: u64,
    at: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Cursor<'a> {
    /// At byte `at` of a file.
    pub(super) fn new(path: &'a Path, file: &'a dyn ReadAt, at: u64) -> Self {
        Self {
            path,
            file,
            end: file.n_bytes().min(MAX_HEADER_BYTES),
            at,
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// The place of the next byte.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Bytes that may be left of the header.
    pub(super) const fn n_left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    fn require(&self, what: &'static str, n_bytes: u64) -> Result<()> {
        match n_bytes <= self.n_left() {
            true => Ok(()),
            false => Err(GgufFault::HeaderCut {
                path: self.path.into(),
                what,
                at: self.at,
                n_bytes,
                end: self.end,
            }
            .into()),
        }
    }

    /// Passes over bytes.
    pub(super) fn skip(&mut self, what: &'static str, n_bytes: u64) -> Result<()> {
        self.require(what, n_bytes)?;
        self.at += n_bytes;
        Ok(())
    }

    /// The next bytes, at most [`WINDOW_BYTES`] of them.
    fn take(&mut self, what: &'static str, n_bytes: usize) -> Result<&[u8]> {
        self.require(what, n_bytes as u64)?;
        let wanted = self.at..self.at + n_bytes as u64;
        let held = self.window_start..self.window_start + self.window.len() as u64;
        if wanted.start < held.start || wanted.end > held.end {
            let n_read = self.n_left().min(WINDOW_BYTES.max(n_bytes) as u64);
            self.window.resize(n_read as usize, 0);
            let whole = self.at..self.at + n_read;
            (self.file.read_part(&mut self.window, self.at, whole))
                .map_err(|source| Error::io("read", self.path, source))?;
            self.window_start = self.at;
        }
        let start = (self.at - self.window_start) as usize;
        self.at += n_bytes as u64;
        Ok(&self.window[start..start + n_bytes])
    }

    /// The next bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(what, N)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The length of a string that begins here, which the header has room for.
    pub(super) fn length(&mut self, what: &'static str) -> Result<u64> {
        let n_bytes = self.u64(what)?;
        self.require(what, n_bytes)?;
        Ok(n_bytes)
    }

    /// Bytes of a string, of a length that is known to be there.
    pub(super) fn bytes(&mut self, what: &'static str, n_bytes: u64) -> Result<Vec<u8>> {
        self.require(what, n_bytes)?;
        let mut bytes = Vec::with_capacity(n_bytes as usize);
        while (bytes.len() as u64) < n_bytes {
            let n = (n_bytes as usize - bytes.len()).min(WINDOW_BYTES);
            bytes.extend_from_slice(self.take(what, n)?);
        }
        Ok(bytes)
    }

    /// A name: text, without which nothing can be said of what it names.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String> {
        let n_bytes = self.length(what)?;
        let at = self.at;
        String::from_utf8(self.bytes(what, n_bytes)?).map_err(|_| {
            GgufFault::NotText {
                path: self.path.into(),
                what,
                at,
            }
            .into()
        })
    }
}
