//! The layout of a zip archive as `torch.save` writes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;
use serde_json::json;

use super::Contents;
use super::layout::{Layout, Piece};
use super::names::without_aliases;
use super::pickle;
use super::zip::Archive;
use crate::{Error, Result, WriteFault};

/// The record of a torch archive in which this program keeps the metadata, as a JSON object.
pub(crate) const METADATA_RECORD: &str = "vlmerge.json";

/// The folder of all records. torch takes the file's name; ours does not depend on it, so that the
/// same inputs give the same bytes under any name.
const FOLDER: &str = "archive";

/// Records before the first storage.
const N_RECORDS_BEFORE: usize = 4;

/// A torch archive of one storage per tensor.
pub(super) struct TorchLayout {
    archive: Archive,
    pickle: Vec<u8>,
    n_metadata_bytes: usize,
    /// For each tensor the checksums of its chunks so far, with their first bytes.
    checksums: Vec<Mutex<Vec<(u64, Hasher)>>>,
}

impl TorchLayout {
    /// Lays out the tensors in the order given, below `nested` if that names a key, with room for
    /// `metadata`. Other names of a tensor are behind all tensors and refer to its storage.
    pub(super) fn new(
        contents: Contents<'_>,
        nested: Option<&str>,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        let pickle = pickle::dictionary(contents, nested);
        let tensors = contents.tensors;
        let n_metadata_bytes = record(metadata).len();
        let small = [
            ("data.pkl", pickle.len()),
            ("byteorder", BYTE_ORDER.len()),
            ("version", VERSION.len()),
            (METADATA_RECORD, n_metadata_bytes),
        ];
        let small = small.map(|(name, n_bytes)| (name.to_owned(), n_bytes as u64));
        let storages = tensors
            .iter()
            .enumerate()
            .map(|(index, (_, info))| (format!("data/{index}"), info.n_bytes()));
        let records = small
            .into_iter()
            .chain(storages)
            .map(|(name, n_bytes)| (format!("{FOLDER}/{name}"), n_bytes));
        Self {
            archive: Archive::new(records),
            pickle,
            n_metadata_bytes,
            checksums: tensors.iter().map(|_| Mutex::default()).collect(),
        }
    }

    /// The checksum of a tensor from those of its chunks.
    fn checksum(&self, index: usize) -> u32 {
        let mut chunks = self.checksums[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        chunks.sort_by_key(|(first, _)| *first);
        let mut whole = Hasher::new();
        for (_, chunk) in chunks.iter() {
            whole.combine(chunk);
        }
        whole.finalize()
    }
}

/// The text of the record of metadata.
fn record(metadata: &BTreeMap<String, String>) -> String {
    json!(without_aliases(metadata)).to_string()
}

/// Contents of the record `byteorder`.
const BYTE_ORDER: &[u8] = b"little";
/// Contents of the record `version`: that of torch's archive format.
const VERSION: &[u8] = b"3\n";

impl Layout for TorchLayout {
    fn n_bytes(&self) -> u64 {
        self.archive.n_bytes()
    }

    fn start(&self, index: usize) -> u64 {
        self.archive.data_start(N_RECORDS_BEFORE + index)
    }

    fn note(&self, index: usize, first_byte: u64, bytes: &[u8]) {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        self.checksums[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((first_byte, hasher));
    }

    fn frame(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<Piece>> {
        let mut text = record(metadata).into_bytes();
        if text.len() > self.n_metadata_bytes {
            return Err(Error::Write(WriteFault::MetadataGrew {
                path: path.into(),
                n_bytes: (text.len() - self.n_metadata_bytes) as u64,
            }));
        }
        text.resize(self.n_metadata_bytes, b' ');
        let small: [&[u8]; N_RECORDS_BEFORE] = [&self.pickle, BYTE_ORDER, VERSION, &text];
        let mut checksums: Vec<_> = small.iter().map(|data| crc32fast::hash(data)).collect();
        checksums.extend((0..self.checksums.len()).map(|index| self.checksum(index)));
        let mut pieces = Vec::with_capacity(checksums.len() + N_RECORDS_BEFORE + 1);
        for (index, &checksum) in checksums.iter().enumerate() {
            pieces.push(self.archive.local_header(index, checksum));
        }
        for (index, data) in small.into_iter().enumerate() {
            pieces.push((self.archive.data_start(index), data.to_vec()));
        }
        let directory = self.archive.directory(&checksums);
        pieces.push((self.archive.directory_start(), directory));
        Ok(pieces)
    }
}
