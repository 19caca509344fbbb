//! The header of a file from its first byte on: what stands there, or a fault that says what should.

use std::path::Path;

use crate::io::read_at::ReadAt;
use crate::io::window::Window;
use crate::{GgufFault, Result};

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 16;

/// The longest header that is read: several times that of the largest vocabularies.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A place in the header.
pub(super) struct Cursor<'a> {
    pub(super) path: &'a Path,
    window: Window<'a>,
}

impl<'a> Cursor<'a> {
    /// At byte `at` of a file.
    pub(super) fn new(path: &'a Path, file: &'a dyn ReadAt, at: u64) -> Self {
        let mut window = Window::new(path, file).within(MAX_HEADER_BYTES, WINDOW_BYTES);
        window.go_to(at);
        Self { path, window }
    }

    /// The place of the next byte.
    pub(super) const fn at(&self) -> u64 {
        self.window.at()
    }

    /// Bytes that may be left of the header.
    pub(super) const fn n_left(&self) -> u64 {
        self.window.n_left()
    }

    fn require(&self, what: &'static str, n_bytes: u64) -> Result<()> {
        match n_bytes <= self.n_left() {
            true => Ok(()),
            false => Err(GgufFault::HeaderCut {
                path: self.path.into(),
                what,
                at: self.at(),
                n_bytes,
                end: self.window.end(),
            }
            .into()),
        }
    }

    /// Passes over bytes.
    pub(super) fn skip(&mut self, what: &'static str, n_bytes: u64) -> Result<()> {
        self.require(what, n_bytes)?;
        self.window.skip(n_bytes)
    }

    /// The next bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        self.require(what, N as u64)?;
        self.window.array()
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
        self.window.bytes(n_bytes)
    }

    /// A name: text, without which no message can name the thing.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String> {
        let n_bytes = self.length(what)?;
        let at = self.at();
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
