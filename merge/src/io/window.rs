//! Reading a file from one byte on, a window at a time.

use std::path::Path;

use super::read_at::ReadAt;
use crate::{ContainerFault, Error, Result};

/// Bytes that are read at once.
const WINDOW_BYTES: u64 = 1 << 12;

/// A place in a file.
pub(super) struct Window<'a> {
    pub(super) path: &'a Path,
    file: &'a dyn ReadAt,
    at: u64,
    end: u64,
    held: Vec<u8>,
    held_start: u64,
}

impl<'a> Window<'a> {
    /// At the first byte of a file.
    pub(super) fn new(path: &'a Path, file: &'a dyn ReadAt) -> Self {
        Self {
            path,
            file,
            at: 0,
            end: file.n_bytes(),
            held: Vec::new(),
            held_start: 0,
        }
    }

    /// The place of the next byte.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Goes to another place.
    pub(super) const fn go_to(&mut self, at: u64) {
        self.at = at;
    }

    /// Where the file ends.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// The fault of what stands at `at`.
    pub(super) fn fault(&self, at: u64, what: impl Into<String>) -> Error {
        ContainerFault::Damaged {
            path: self.path.into(),
            at,
            what: what.into(),
        }
        .into()
    }

    /// Checks that this number of bytes is left.
    pub(super) fn require(&self, n_bytes: u64) -> Result<()> {
        match n_bytes <= self.end.saturating_sub(self.at) {
            true => Ok(()),
            false => Err(self.fault(
                self.at,
                format!(
                    "{n_bytes} bytes should follow, and the file ends at {}",
                    self.end
                ),
            )),
        }
    }

    /// Passes over bytes.
    pub(super) fn skip(&mut self, n_bytes: u64) -> Result<()> {
        self.require(n_bytes)?;
        self.at += n_bytes;
        Ok(())
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// The next bytes, fewer than a window has.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.require(N as u64)?;
        let held_end = self.held_start + self.held.len() as u64;
        if self.at < self.held_start || self.at + N as u64 > held_end {
            let n_bytes = WINDOW_BYTES.min(self.end - self.at);
            self.held.resize(n_bytes as usize, 0);
            (self.file.read_exact_at(&mut self.held, self.at))
                .map_err(|source| Error::io("read", self.path, source))?;
            self.held_start = self.at;
        }
        let start = (self.at - self.held_start) as usize;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.held[start..start + N]);
        self.at += N as u64;
        Ok(bytes)
    }

    /// The next `n_bytes`, whose number the caller bounds.
    pub(super) fn bytes(&mut self, n_bytes: u64) -> Result<Vec<u8>> {
        self.require(n_bytes)?;
        let mut bytes = vec![0; n_bytes as usize];
        (self.file.read_exact_at(&mut bytes, self.at))
            .map_err(|source| Error::io("read", self.path, source))?;
        self.at += n_bytes;
        Ok(bytes)
    }
}
