//! Hashes of whole files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::io::SourceFile;
use crate::remote::address::is_address;
use crate::{Error, Progress, Result};

/// Bytes of one read. They stay in the cache of one core until it hashes them.
const BLOCK_BYTES: usize = 256 << 10;

/// Hexadecimal digits of a hash of either kind.
const N_DIGITS: usize = 64;

/// A hash function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashKind {
    /// BLAKE3, several times as fast as SHA-256.
    #[default]
    Blake3,
    /// SHA-256, which `sha256sum` and the hub print.
    Sha256,
}

impl HashKind {
    /// The name that files record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// The name that people read.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Blake3 => "BLAKE3",
            Self::Sha256 => "SHA-256",
        }
    }

    pub(super) fn placeholder(self) -> FileHash {
        FileHash {
            kind: self,
            hex: "0".repeat(N_DIGITS),
        }
    }
}

/// The hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileHash {
    /// The function.
    pub kind: HashKind,
    /// The hash in hexadecimal.
    pub hex: String,
}

impl fmt::Display for FileHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.kind.name(), self.hex)
    }
}

/// Hashes of files. The first request for a file reads it; later ones return the same hash until the size of the file
/// or the time of its last change differs. A clone shares the known hashes.
#[derive(Clone, Debug, Default)]
pub struct Hashes {
    known: Arc<Mutex<BTreeMap<(Seen, HashKind), String>>>,
}

/// The state of a file at the time of its hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    path: PathBuf,
    n_bytes: u64,
    changed: SystemTime,
}

impl Hashes {
    /// The hash of each file, in the order of `files`. A remote file has none, because a hash needs all of its bytes.
    /// Each core hashes one file at a time.
    ///
    /// # Errors
    /// If a file cannot be read, and [`Error::Cancelled`].
    pub fn of(
        &self,
        files: &[SourceFile],
        kind: HashKind,
        progress: &dyn Progress,
    ) -> Result<Vec<Option<FileHash>>> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, String)>> {
            let mut found = Vec::new();
            while let Some((index, file)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                files.get(index).map(|file| (index, file))
            } {
                if !is_address(&file.path) {
                    found.push((index, self.of_file(&file.path, kind, progress)?));
                }
            }
            Ok(found)
        };
        let n_threads = thread::available_parallelism().map_or(1, |n| n.get().min(files.len()));
        let mut hashes = vec![None; files.len()];
        thread::scope(|scope| {
            let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                // A panic of a hashing thread is a bug and goes on as one.
                let found = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                for (index, hex) in found {
                    hashes[index] = Some(FileHash { kind, hex });
                }
            }
            Ok(hashes)
        })
    }

    fn of_file(&self, path: &Path, kind: HashKind, progress: &dyn Progress) -> Result<String> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        // If the file system keeps no times, each request reads the file.
        let seen = metadata.modified().ok().map(|changed| Seen {
            path: path.into(),
            n_bytes: metadata.len(),
            changed,
        });
        let seen = seen.map(|seen| (seen, kind));
        if let Some(hash) = seen.as_ref().and_then(|seen| known().get(seen).cloned()) {
            return Ok(hash);
        }
        let hash = hash_file(path, kind, progress)?;
        if let Some(seen) = seen {
            known().insert(seen, hash.clone());
        }
        Ok(hash)
    }
}

/// The hash of a whole file, as hexadecimal digits.
///
/// # Errors
/// When the file cannot be read, or the user stops it.
pub fn hash_file(path: &Path, kind: HashKind, progress: &dyn Progress) -> Result<String> {
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut each = |update: &mut dyn FnMut(&[u8])| loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let n_bytes = file
            .read(&mut block)
            .map_err(|error| Error::io("read", path, error))?;
        match n_bytes {
            0 => return Ok(()),
            n_bytes => update(&block[..n_bytes]),
        }
    };
    match kind {
        HashKind::Blake3 => {
            let mut hasher = blake3::Hasher::new();
            each(&mut |bytes| {
                hasher.update(bytes);
            })?;
            Ok(hasher.finalize().to_hex().to_string())
        }
        HashKind::Sha256 => {
            let mut hasher = Sha256::new();
            each(&mut |bytes| hasher.update(bytes))?;
            Ok(hexadecimal(&hasher.finalize()))
        }
    }
}

/// Bytes as hexadecimal digits in lower case, two for each.
///
/// # Example
/// ```
/// assert_eq!(merge::provenance::hexadecimal(&[0x0a, 0xff]), "0aff");
/// ```
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_as_the_standard_says() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "abc").expect("written");
        let hashes = Hashes::default();
        for (kind, expected) in [
            // FIPS 180-2, appendix B.1.
            (
                HashKind::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            // The hash that `b3sum` prints.
            (
                HashKind::Blake3,
                "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
        ] {
            let source = SourceFile::named(file.path(), 3);
            let found = hashes.of(&[source], kind, &crate::progress::Silent);
            let hex = expected.to_owned();
            assert_eq!(found.expect("readable"), [Some(FileHash { kind, hex })]);
        }
    }

    #[test]
    fn many_files_keep_their_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let files: Vec<SourceFile> = (0..50_u32)
            .map(|index| {
                let path = folder.path().join(index.to_string());
                std::fs::write(&path, index.to_le_bytes()).expect("written");
                SourceFile::named(path, 4)
            })
            .collect();
        let kind = HashKind::Blake3;
        let found = Hashes::default().of(&files, kind, &crate::progress::Silent);
        let expected: Vec<_> = (0..50_u32)
            .map(|index| {
                let hex = blake3::hash(&index.to_le_bytes()).to_hex().to_string();
                Some(FileHash { kind, hex })
            })
            .collect();
        assert_eq!(found.expect("readable"), expected);
    }

    #[test]
    fn a_file_is_read_again_only_when_it_has_changed() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let source = || SourceFile::named(file.path(), 3);
        let hashes = Hashes::default();
        let hash = |hashes: &Hashes| {
            let found = hashes.of(&[source()], HashKind::default(), &crate::progress::Silent);
            found.expect("readable").remove(0)
        };
        let write = |text: &str, seconds: u64| {
            std::fs::write(file.path(), text).expect("written");
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.as_file().set_modified(time).expect("times are kept");
        };
        write("abc", 1);
        let first = hash(&hashes);
        // Other content under the same size and time shows that the file is not read.
        write("xyz", 1);
        assert_eq!(hash(&hashes.clone()), first);
        assert_ne!(hash(&Hashes::default()), first);
        write("xyz", 2);
        assert_eq!(hash(&hashes), hash(&Hashes::default()));
        write("abcd", 1);
        assert_eq!(hash(&hashes), hash(&Hashes::default()));
    }
}
