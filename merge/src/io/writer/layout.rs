//! Where the data of a file stand, known before any of them are.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;

/// Bytes of a file, and the position at which they stand.
pub(super) type Piece = (u64, Vec<u8>);

/// The layout of one output file.
pub(super) trait Layout: Send + Sync {
    /// Bytes of the whole file.
    fn n_bytes(&self) -> u64;

    /// Where the data of tensor `index` begin.
    fn start(&self, index: usize) -> u64;

    /// Takes note of data that are being written, if the file holds checksums; from any thread.
    fn note(&self, index: usize, first_byte: u64, bytes: &[u8]) {
        let _ = (index, first_byte, bytes);
    }

    /// Everything but the data: headers, directories, metadata. `path` is for errors.
    fn frame(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<Piece>>;
}
