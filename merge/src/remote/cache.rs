//! The blocks of remote files that were read before, on disk.
//!
//! Each version of a file is a sparse file of data and a list of the blocks in it. A block is
//! written first and listed afterwards with its checksum, in one appended line of fixed length:
//! processes that share a cache add to it side by side, and what a crash left half done is not
//! listed, or fails its checksum and is read again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::RemoteFault;
use crate::platform;
use crate::provenance::hexadecimal;

/// Bytes of a block; the last of a file may be shorter.
pub(super) const BLOCK_BYTES: u64 = 256 << 10;

/// Bytes of a line of the list: index, checksum, line feed.
const LINE_BYTES: usize = 16 + 1 + 8 + 1;

/// The longest document that is kept whole.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// One version of a remote file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// The server's name for it.
    pub(super) etag: String,
    /// Its size.
    pub(super) n_bytes: u64,
}

impl Version {
    /// For messages.
    pub(super) fn describe(&self) -> String {
        format!("{} of {} bytes", self.etag, self.n_bytes)
    }
}

/// The cache folder.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub(super) folder: PathBuf,
}

impl Cache {
    fn place(&self, address: &str) -> PathBuf {
        self.folder.join("v1").join(hash(address))
    }

    /// The version of a file that was opened last.
    pub(super) fn latest(&self, address: &str) -> Option<Version> {
        let text = fs::read(self.place(address).join("latest.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The blocks of a version, which becomes the latest.
    pub(super) fn open(&self, address: &str, version: &Version) -> Result<Blocks, RemoteFault> {
        let folder = self.place(address);
        fs::create_dir_all(&folder).map_err(|error| fault("create", &folder, &error))?;
        if self.latest(address).as_ref() != Some(version) {
            let text = serde_json::to_vec(version).unwrap_or_default();
            replace(&folder.join("latest.json"), &text)?;
        }
        let name = hash(&version.describe());
        Blocks::open(&folder, &name, version.n_bytes)
    }

    /// A document that was kept, such as the list of a model's files.
    pub(super) fn document(&self, address: &str) -> Option<Vec<u8>> {
        let path = self.place(address).join("document");
        let is_short = fs::metadata(&path).ok()?.len() <= MAX_DOCUMENT_BYTES;
        is_short.then(|| fs::read(&path).ok()).flatten()
    }

    /// Keeps a document.
    pub(super) fn keep_document(&self, address: &str, text: &[u8]) -> Result<(), RemoteFault> {
        let folder = self.place(address);
        fs::create_dir_all(&folder).map_err(|error| fault("create", &folder, &error))?;
        replace(&folder.join("document"), text)
    }
}

/// The blocks of one version of a file.
pub(super) struct Blocks {
    path: PathBuf,
    data: File,
    list: File,
    n_bytes: u64,
    known: Mutex<Known>,
}

/// The known facts about the list.
struct Known {
    /// Checksum of each listed block, and whether the data were found to have it.
    blocks: HashMap<u64, (u32, bool)>,
    /// Bytes of the list that were read.
    n_read: u64,
}

impl Blocks {
    fn open(folder: &Path, name: &str, n_bytes: u64) -> Result<Self, RemoteFault> {
        let open = |extension: &str, append: bool| {
            let path = folder.join(name).with_extension(extension);
            let file = File::options()
                .read(true)
                .write(!append)
                .append(append)
                .create(true)
                .truncate(false)
                .open(&path);
            file.map_err(|error| fault("open", &path, &error))
        };
        let blocks = Self {
            path: folder.join(name).with_extension("data"),
            data: open("data", false)?,
            list: open("blocks", true)?,
            n_bytes,
            known: Mutex::new(Known {
                blocks: HashMap::new(),
                n_read: 0,
            }),
        };
        blocks.refresh(&mut blocks.known())?;
        Ok(blocks)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the new entries of the list, which other processes may have added.
    fn refresh(&self, known: &mut Known) -> Result<(), RemoteFault> {
        let failed = |error| fault("read", &self.path, &error);
        let end = self.list.metadata().map_err(failed)?.len();
        let mut text = vec![0; end.saturating_sub(known.n_read) as usize];
        platform::read_exact_at(&self.list, &mut text, known.n_read).map_err(failed)?;
        let n_whole = text.iter().rposition(|&byte| byte == b'\n');
        let n_whole = n_whole.map_or(0, |last| last + 1);
        known.n_read += n_whole as u64;
        for line in text[..n_whole].split_inclusive(|&byte| byte == b'\n') {
            // A line that a crash cut short is part of a longer or shorter one.
            let entry = (line.len() == LINE_BYTES)
                .then(|| std::str::from_utf8(line).ok()?.trim_end().split_once(' '))
                .flatten();
            if let Some((index, crc)) = entry
                && let (Ok(index), Ok(crc)) =
                    (u64::from_str_radix(index, 16), u32::from_str_radix(crc, 16))
                && index < self.n_bytes.div_ceil(BLOCK_BYTES)
                && known.blocks.get(&index).is_none_or(|&(old, _)| old != crc)
            {
                known.blocks.insert(index, (crc, false));
            }
        }
        Ok(())
    }

    /// Whether a block is there and sound.
    pub(super) fn has(&self, index: u64) -> Result<bool, RemoteFault> {
        let mut known = self.known();
        if !known.blocks.contains_key(&index) {
            self.refresh(&mut known)?;
        }
        let Some(&(crc, is_checked)) = known.blocks.get(&index) else {
            return Ok(false);
        };
        if is_checked {
            return Ok(true);
        }
        let mut bytes = vec![0; self.block_bytes(index)];
        let is_sound = platform::read_exact_at(&self.data, &mut bytes, index * BLOCK_BYTES).is_ok()
            && crc32fast::hash(&bytes) == crc;
        match is_sound {
            true => known.blocks.insert(index, (crc, true)),
            false => known.blocks.remove(&index),
        };
        Ok(is_sound)
    }

    /// Bytes of a block.
    fn block_bytes(&self, index: u64) -> usize {
        (self.n_bytes - index * BLOCK_BYTES).min(BLOCK_BYTES) as usize
    }

    /// Writes a block, then lists it.
    pub(super) fn put(&self, index: u64, bytes: &[u8]) -> Result<(), RemoteFault> {
        let failed = |error| fault("write", &self.path, &error);
        debug_assert_eq!(bytes.len(), self.block_bytes(index));
        platform::write_all_at(&self.data, bytes, index * BLOCK_BYTES).map_err(failed)?;
        let crc = crc32fast::hash(bytes);
        let line = format!("{index:016x} {crc:08x}\n");
        (&self.list).write_all(line.as_bytes()).map_err(failed)?;
        self.known().blocks.insert(index, (crc, true));
        Ok(())
    }

    /// Reads bytes of blocks that [`Blocks::has`] found.
    pub(super) fn read(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        platform::read_exact_at(&self.data, out, offset)
    }
}

/// Writes a small file beside its target and renames it.
fn replace(path: &Path, text: &[u8]) -> Result<(), RemoteFault> {
    let folder = path.parent().unwrap_or(path);
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(text)?;
        file.persist(path).map_err(|error| error.error)
    });
    written.map_err(|error| fault("write", path, &error))?;
    Ok(())
}

fn fault(action: &'static str, path: &Path, error: &std::io::Error) -> RemoteFault {
    RemoteFault::Cache {
        action,
        path: path.into(),
        reason: error.to_string(),
    }
}

fn hash(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Blocks {
        let cache = Cache {
            folder: folder.into(),
        };
        let version = Version {
            etag: "\"a\"".into(),
            n_bytes: BLOCK_BYTES + 10,
        };
        cache.open("https://host/x", &version).expect("a cache")
    }

    #[test]
    fn two_openings_see_each_others_blocks() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (open(folder.path()), open(folder.path()));
        assert!(!two.has(1).expect("readable"));
        one.put(1, b"0123456789").expect("written");
        assert!(two.has(1).expect("readable"));
        let mut out = [0; 3];
        two.read(&mut out, BLOCK_BYTES + 2).expect("there");
        assert_eq!(&out, b"234");
    }

    #[test]
    fn half_written_lines_and_damaged_blocks_are_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = open(folder.path());
        // Cut by a crash; then another process goes on.
        (&one.list).write_all(b"0000000000").expect("written");
        one.put(1, b"0123456789").expect("written");
        let two = open(folder.path());
        assert!(
            !two.has(1).expect("readable"),
            "its line was joined to half of one"
        );
        one.put(1, b"0123456789").expect("written");
        assert!(two.has(1).expect("readable"));
        platform::write_all_at(&one.data, b"x", BLOCK_BYTES).expect("written");
        assert!(!open(folder.path()).has(1).expect("readable"));
    }
}
