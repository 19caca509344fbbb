//! Facts about the files of data, by which a result is known to be of the same data.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use merge::io::FileBytes;
use merge::platform;
use merge::progress::Silent;
use merge::provenance::{HashKind, hash_file, hexadecimal};
use merge::remote::address::is_address;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The largest file that the hash reads whole: tables, lists and small sets of pictures.
const WHOLE_BYTES: u64 = 64 << 20;

/// Bytes at the beginning and at the end of a larger file that the hash reads. Footers of arrow and parquet files are there.
const END_BYTES: u64 = 1 << 20;

/// Pieces between them, and the bytes of each.
const N_PIECES: u64 = 256;
const PIECE_BYTES: u64 = 4096;

/// The bytes of a hash that are kept: enough to tell any files apart.
const N_HASH_BYTES: usize = 16;

/// A file, or a folder of pictures, with what tells it from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileFacts {
    /// Its name in the folder of the data.
    pub name: String,
    /// Its bytes; of a folder those of all pictures.
    pub n_bytes: u64,
    /// A hash of its content; of a file above 64 MiB of parts of it; of a folder of the names and sizes of its pictures.
    /// `None` of a remote file.
    pub hash: Option<String>,
    /// The time of the last change, where the hash does not read everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<String>,
}

impl FileFacts {
    /// Of a file, here or by its address.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(name: &str, path: &Path) -> Result<Self> {
        if is_address(path) {
            return Ok(Self {
                name: name.to_owned(),
                n_bytes: FileBytes::open(path)?.n_bytes(),
                hash: None,
                changed: None,
            });
        }
        let failed = |source| Error::io("read", path, source);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let n_bytes = metadata.len();
        let mut hash = Sha256::new();
        let mut buffer = vec![0; END_BYTES as usize];
        let mut add = |from: u64, n: u64| {
            let n = n.min(n_bytes.saturating_sub(from)) as usize;
            platform::read_exact_at(&file, &mut buffer[..n], from).map_err(failed)?;
            hash.update(&buffer[..n]);
            Ok::<(), Error>(())
        };
        let is_whole = n_bytes <= WHOLE_BYTES;
        if is_whole {
            for from in (0..n_bytes).step_by(END_BYTES as usize) {
                add(from, END_BYTES)?;
            }
        } else {
            add(0, END_BYTES)?;
            for piece in 0..N_PIECES {
                add(n_bytes / N_PIECES * piece, PIECE_BYTES)?;
            }
            add(n_bytes - END_BYTES, END_BYTES)?;
        }
        Ok(Self {
            name: name.to_owned(),
            n_bytes,
            hash: Some(hexadecimal(&hash.finalize()[..N_HASH_BYTES])),
            changed: (!is_whole).then(|| nanoseconds(&metadata).to_string()),
        })
    }

    /// Of several files, on all threads.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_all(files: Vec<(String, PathBuf)>) -> Result<Vec<Self>> {
        let files = files.into_par_iter();
        files.map(|(name, path)| Self::of(&name, &path)).collect()
    }

    /// Of pictures by their names. No picture is read.
    ///
    /// # Errors
    /// When one is gone.
    pub fn of_pictures<'a>(
        name: &str,
        pictures: impl IntoIterator<Item = (&'a str, &'a Path)>,
    ) -> Result<Self> {
        let (mut n_bytes, mut hash, mut times) = (0, Sha256::new(), Sha256::new());
        for (name, path) in pictures {
            let metadata = std::fs::metadata(path);
            let metadata = metadata.map_err(|source| Error::io("open", path, source))?;
            n_bytes += metadata.len();
            // A name that ends elsewhere is another name.
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(metadata.len().to_le_bytes());
            times.update(nanoseconds(&metadata).to_le_bytes());
        }
        Ok(Self {
            name: name.to_owned(),
            n_bytes,
            hash: Some(hexadecimal(&hash.finalize()[..N_HASH_BYTES])),
            changed: Some(hexadecimal(&times.finalize()[..N_HASH_BYTES])),
        })
    }

    /// Of all files of a folder and of the folders in it. Folders behind links are not listed; the folder itself may be
    /// one. `None` where it is not there.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn of_folder(name: &str, folder: &Path) -> Result<Option<Self>> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(folder) = open.pop() {
            let failed = |source| Error::io("list", &folder, source);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                match entry.file_type().map_err(failed)?.is_dir() {
                    true => open.push(path),
                    // A link that leads nowhere is no picture.
                    false if path.exists() => found.push(path),
                    false => {}
                }
            }
        }
        found.sort_unstable();
        let named = found.iter().map(|path| {
            let inside = path.strip_prefix(folder).unwrap_or(path);
            (inside.to_string_lossy(), path.as_path())
        });
        let named: Vec<_> = named.collect();
        let pictures = named.iter().map(|(name, path)| (&**name, *path));
        Self::of_pictures(name, pictures).map(Some)
    }

    /// The facts that a copy of the file has, too.
    #[must_use]
    pub fn without_time(self) -> Self {
        Self {
            changed: None,
            ..self
        }
    }
}

/// The time of the last change; 0 where the file system keeps none.
fn nanoseconds(metadata: &std::fs::Metadata) -> u128 {
    let changed = metadata.modified().ok();
    let since = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos())
}

/// A hash of a whole file of any size.
///
/// # Errors
/// When it cannot be read.
pub fn hash_of_all(path: &Path) -> Result<String> {
    let mut hash = hash_file(path, HashKind::Sha256, &Silent)?;
    hash.truncate(2 * N_HASH_BYTES);
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn touched(path: &Path, seconds: u64) {
        let file = File::options().write(true).open(path).expect("opened");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(time).expect("set");
    }

    #[test]
    fn a_small_file_is_known_by_its_content_and_a_large_one_by_parts_and_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("table.csv");
        let facts = || FileFacts::of("table.csv", &path).expect("facts");
        std::fs::write(&path, "a dog").expect("written");
        touched(&path, 1);
        let first = facts();
        touched(&path, 2);
        assert_eq!(facts(), first, "the time of a small file does not count");
        std::fs::write(&path, "a cat").expect("written");
        touched(&path, 1);
        assert_ne!(facts(), first, "five other letters of the same time");
        assert_eq!(first.hash.as_deref().map(str::len), Some(32));

        let file = File::create(&path).expect("made");
        file.set_len(WHOLE_BYTES + 1).expect("a long file");
        touched(&path, 1);
        let long = facts();
        // Between two pieces.
        platform::write_all_at(&file, b"x", END_BYTES + PIECE_BYTES + 7).expect("written");
        touched(&path, 2);
        let changed = facts();
        assert_ne!(changed, long);
        assert_eq!(changed.without_time(), long.clone().without_time());
        platform::write_all_at(&file, b"x", WHOLE_BYTES).expect("written");
        touched(&path, 1);
        assert_ne!(facts().without_time(), long.without_time(), "the last byte");
    }

    #[test]
    fn pictures_of_a_folder_are_known_by_names_sizes_and_times() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("in");
        std::fs::create_dir(&inner).expect("made");
        let path = inner.join("1.jpg");
        std::fs::write(&path, "12").expect("written");
        touched(&path, 1);
        let facts = || {
            let facts = FileFacts::of_folder("valid", folder.path());
            facts.expect("facts").expect("a folder")
        };
        let first = facts();
        assert_eq!((first.name.as_str(), first.n_bytes), ("valid", 2));
        touched(&path, 2);
        assert_ne!(facts(), first);
        assert_eq!(facts().without_time(), first.clone().without_time());
        std::fs::rename(&path, inner.join("2.jpg")).expect("renamed");
        assert_ne!(facts().without_time(), first.without_time());
        let nothing = FileFacts::of_folder("train", &folder.path().join("train"));
        assert_eq!(nothing.expect("facts"), None);
    }
}
