//! The record of its own making in a written checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::io::SourceFile;
use crate::remote::address::is_address;
use crate::{Error, Progress, Result};

/// Bytes read at a time while hashing.
const BLOCK_BYTES: usize = 1 << 20;

/// The program that made a checkpoint, its recipe, and its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The resolved recipe, or the command, with file names instead of paths.
    pub recipe: String,
    /// The input files, in the order in which they were opened.
    pub inputs: Vec<InputFile>,
}

/// An input file. Only its name is kept, so that the same inputs give the same bytes anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its name without folders, or with as much of them as tells it from the others; the address of
    /// a remote file.
    pub name: String,
    /// Its size.
    pub n_bytes: u64,
    /// SHA-256 of its content in hexadecimal, unless hashing was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The server's name for this version of a remote file, which is not read whole for a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl Provenance {
    /// Of a result made by `recipe` from `files`, without hashes.
    #[must_use]
    pub fn new(recipe: String, files: &[SourceFile]) -> Self {
        let paths: Vec<&Path> = files.iter().map(|file| file.path.as_path()).collect();
        let inputs = files
            .iter()
            .zip(short_names(&paths))
            .map(|(file, name)| InputFile {
                name,
                n_bytes: file.n_bytes,
                sha256: None,
                etag: file.etag.clone(),
            });
        Self {
            recipe,
            inputs: inputs.collect(),
        }
    }

    /// With the hashes of the inputs, in their order; remote files have none.
    #[must_use]
    pub fn with_hashes(mut self, hashes: Vec<Option<String>>) -> Self {
        for (input, hash) in self.inputs.iter_mut().zip(hashes) {
            input.sha256 = hash;
        }
        self
    }

    /// With stand-ins as long as the hashes that are still being computed.
    #[must_use]
    pub fn with_placeholder_hashes(self, is_hashed: bool) -> Self {
        let hash = "0".repeat(2 * Sha256::output_size());
        let of_input = |input: &InputFile| input.etag.is_none().then(|| hash.clone());
        let hashes = self.inputs.iter().map(of_input).collect();
        match is_hashed {
            true => self.with_hashes(hashes),
            false => self,
        }
    }

    /// As string metadata of a checkpoint file; keys in `docs/formats.md`.
    #[must_use]
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let inputs = serde_json::to_string(&self.inputs);
        BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (
                "vlmerge.version".to_owned(),
                env!("CARGO_PKG_VERSION").to_owned(),
            ),
            ("vlmerge.recipe".to_owned(), self.recipe.clone()),
            // A list of strings and numbers always has a JSON form.
            ("vlmerge.inputs".to_owned(), inputs.unwrap_or_default()),
        ])
    }

    /// From the metadata of a file that this program wrote; `None` for any other.
    #[must_use]
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            recipe: metadata.get("vlmerge.recipe")?.clone(),
            inputs: serde_json::from_str(metadata.get("vlmerge.inputs")?).ok()?,
        })
    }
}

/// For each path the last of its parts, or as many as no other path ends with. An address is kept
/// whole: it means the same everywhere.
pub(crate) fn short_names(paths: &[&Path]) -> Vec<String> {
    let parts = |path: &Path| -> Vec<String> {
        let parts = path.components().rev();
        parts
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect()
    };
    let all: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let mut names: BTreeMap<&[String], &[String]> = BTreeMap::new();
    let mut open: Vec<&[String]> = all.iter().map(Vec::as_slice).collect();
    open.sort_unstable();
    open.dedup();
    let mut n_parts = 1;
    while !open.is_empty() {
        let mut users: BTreeMap<&[String], usize> = BTreeMap::new();
        let ends: std::collections::BTreeSet<&[String]> = all.iter().map(Vec::as_slice).collect();
        for parts in ends {
            *users.entry(&parts[..n_parts.min(parts.len())]).or_default() += 1;
        }
        open.retain(|parts| {
            let end = &parts[..n_parts.min(parts.len())];
            let is_done = end.len() == parts.len() || users.get(end) == Some(&1);
            if is_done {
                names.insert(parts, end);
            }
            !is_done
        });
        n_parts += 1;
    }
    let name = |parts: &Vec<String>| {
        let end = names.get(parts.as_slice()).copied().unwrap_or_default();
        end.iter()
            .rev()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("/")
    };
    let names = all.iter().map(name).zip(paths);
    names
        .map(|(name, path)| match is_address(path) {
            true => path.to_string_lossy().into_owned(),
            false => name,
        })
        .collect()
}

/// Hashes of files, each file read once: a clone shares what is known. A file counts as the same as
/// long as its size and the time of its last change are the same.
#[derive(Clone, Debug, Default)]
pub struct Hashes {
    known: Arc<Mutex<BTreeMap<Seen, String>>>,
}

/// A file as it was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    path: PathBuf,
    n_bytes: u64,
    changed: SystemTime,
}

impl Hashes {
    /// SHA-256 of each file in hexadecimal, one thread for each file that is not known; of a remote
    /// file none, for it would have to be fetched whole.
    ///
    /// # Errors
    /// When a file cannot be read, or [`Error::Cancelled`].
    pub fn of(&self, files: &[SourceFile], progress: &dyn Progress) -> Result<Vec<Option<String>>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (files.iter())
                .map(|file| {
                    scope.spawn(|| match is_address(&file.path) {
                        true => Ok(None),
                        false => self.of_file(&file.path, progress).map(Some),
                    })
                })
                .collect();
            (threads.into_iter())
                // A panic of a hashing thread is a bug and goes on as one.
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    }

    fn of_file(&self, path: &Path, progress: &dyn Progress) -> Result<String> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        // Where a file system has no times, every file is read every time.
        let seen = metadata.modified().ok().map(|changed| Seen {
            path: path.into(),
            n_bytes: metadata.len(),
            changed,
        });
        if let Some(hash) = seen.as_ref().and_then(|seen| known().get(seen).cloned()) {
            return Ok(hash);
        }
        let hash = hash_file(path, progress)?;
        if let Some(seen) = seen {
            known().insert(seen, hash.clone());
        }
        Ok(hash)
    }
}

fn hash_file(path: &Path, progress: &dyn Progress) -> Result<String> {
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let n_bytes = file
            .read(&mut block)
            .map_err(|error| Error::io("read", path, error))?;
        match n_bytes {
            0 => break,
            n_bytes => hasher.update(&block[..n_bytes]),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_survives_its_metadata_and_placeholders_are_as_long_as_hashes() {
        let file = SourceFile::named("/some/folder/seed.ckpt", 12);
        let bare = Provenance::new("merge_method: interpolate\n".into(), &[file]);
        assert_eq!(bare.inputs[0].name, "seed.ckpt");
        let hashed = bare.clone().with_hashes(vec![Some("ab".repeat(32))]);
        let placeholder = bare.with_placeholder_hashes(true).to_metadata();
        let lengths = |map: &BTreeMap<String, String>| -> Vec<usize> {
            map.values().map(String::len).collect()
        };
        assert_eq!(lengths(&placeholder), lengths(&hashed.to_metadata()));
        assert_eq!(
            Provenance::from_metadata(&hashed.to_metadata()),
            Some(hashed)
        );
    }

    #[test]
    fn names_are_as_long_as_it_takes_to_tell_them_apart() {
        let paths = ["/m/a/x.pt", "/m/b/x.pt", "/n/b/x.pt", "y.pt", "/m/a/x.pt"].map(Path::new);
        let expected = ["a/x.pt", "m/b/x.pt", "n/b/x.pt", "y.pt", "a/x.pt"];
        assert_eq!(short_names(&paths), expected);
        assert_eq!(
            short_names(&[Path::new("x"), Path::new("/a/x")]),
            ["x", "a/x"]
        );
    }

    #[test]
    fn a_file_is_hashed_as_the_standard_says() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "abc").expect("written");
        let source = SourceFile::named(file.path(), 3);
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hashes = Hashes::default().of(&[source], &crate::progress::Silent);
        assert_eq!(hashes.expect("readable"), [Some(expected.to_owned())]);
    }

    #[test]
    fn a_file_is_read_again_only_when_it_has_changed() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let source = || SourceFile::named(file.path(), 3);
        let hashes = Hashes::default();
        let hash = |hashes: &Hashes| {
            let found = hashes.of(&[source()], &crate::progress::Silent);
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
