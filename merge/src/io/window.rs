//! Reading a file from one byte on, a window at a time.

use std::path::Path;

use super::read_at::ReadAt;
use crate::{ContainerFault, Error, Result};

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 12;

/// A place in a file.
pub(super) struct Window<'a> {
    pub(super) path: &'a Path,
    file: &'a dyn ReadAt,
    at: u64,
    end: u64,
    /// The fewest bytes that are read at once.
    n_at_once: usize,
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
            n_at_once: WINDOW_BYTES,
            held: Vec::new(),
            held_start: 0,
        }
    }

    /// That ends at byte `end` at the latest, and reads `n_at_once` bytes at a time.
    pub(super) fn within(self, end: u64, n_at_once: usize) -> Self {
        Self {
            end: self.end.min(end),
            n_at_once,
            ..self
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

    /// Where the file, or the part of it that may be read, ends.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes up to the end.
    pub(super) const fn n_left(&self) -> u64 {
        self.end.saturating_sub(self.at)
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
        match n_bytes <= self.n_left() {
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
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.held(N)?);
        Ok(bytes)
    }

    /// The next `n_bytes`, whose number the caller bounds.
    pub(super) fn bytes(&mut self, n_bytes: u64) -> Result<Vec<u8>> {
        self.require(n_bytes)?;
        let n_bytes = n_bytes as usize;
        if n_bytes <= self.n_at_once {
            return Ok(self.held(n_bytes)?.to_vec());
        }
        let mut bytes = vec![0; n_bytes];
        self.fill(&mut bytes)?;
        self.at += n_bytes as u64;
        Ok(bytes)
    }

    /// The next bytes, which are there and fit into a window.
    fn held(&mut self, n_bytes: usize) -> Result<&[u8]> {
        let held_end = self.held_start + self.held.len() as u64;
        if self.at < self.held_start || self.at + n_bytes as u64 > held_end {
            let n_read = (self.n_at_once as u64).min(self.n_left());
            let mut held = std::mem::take(&mut self.held);
            held.resize(n_read as usize, 0);
            self.fill(&mut held)?;
            (self.held, self.held_start) = (held, self.at);
        }
        let start = (self.at - self.held_start) as usize;
        self.at += n_bytes as u64;
        Ok(&self.held[start..start + n_bytes])
    }

    /// Reads from here on, without going on.
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        let whole = self.at..self.at + out.len() as u64;
        let read = self.file.read_part(out, self.at, whole);
        read.map_err(|source| Error::io("read", self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_whatever_the_window() {
        let file: Vec<u8> = (0..=255).collect();
        for n_at_once in [4, 7, 64, 1000] {
            let window = Window::new(Path::new("f"), &file);
            let mut window = window.within(200, n_at_once);
            assert_eq!(window.array::<3>().expect("there"), [0, 1, 2]);
            assert_eq!(window.bytes(90).expect("there"), file[3..93]);
            window.skip(5).expect("there");
            assert_eq!(window.byte().expect("there"), 98);
            window.go_to(1);
            assert_eq!(window.array::<4>().expect("there"), [1, 2, 3, 4]);
            window.go_to(198);
            assert_eq!(window.n_left(), 2);
            assert!(window.array::<3>().is_err() && window.bytes(3).is_err());
            assert_eq!(window.bytes(2).expect("there"), [198, 199]);
            assert!(
                window.byte().is_err(),
                "the file goes on, the window does not"
            );
        }
    }
}
