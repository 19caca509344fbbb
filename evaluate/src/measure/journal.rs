//! Results that are kept while a command runs, so that it can be resumed where it was
//! stopped.

use std::path::{Path, PathBuf};

use merge::provenance::hexadecimal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::reports::TaskResult;
use crate::{Error, Result, Sample};

/// A folder of finished results, one file each, beside the report that will hold them all.
#[derive(Clone, Debug)]
pub struct Journal {
    folder: PathBuf,
}

/// A result, and what intervals and tests are drawn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// The result; its numbers are filled in when all are known.
    pub result: TaskResult,
    /// The share of each unit of the data set in each number.
    pub sample: Sample,
}

impl Journal {
    /// The journal of a report: the folder `{out}.unfinished`.
    #[must_use]
    pub fn beside(out: &Path) -> Self {
        let mut folder = out.as_os_str().to_owned();
        folder.push(".unfinished");
        Self {
            folder: folder.into(),
        }
    }

    /// The folder of the journal.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a command was stopped before it had finished.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.folder.is_dir()
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| Error::io("create", &self.folder, source))
    }

    /// The result, or the failure, that was kept under a key.
    ///
    /// # Errors
    /// When the file is there and cannot be read or understood.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let path = self.file(key);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let parsed = serde_json::from_slice(&bytes);
                parsed.map(Some).map_err(|source| Error::Json {
                    path,
                    what: "a finished result",
                    source,
                })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read", &path, source)),
        }
    }

    /// Keeps a result, or a failure, under a key, in one step: it is there whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, key: &str, finished: &impl Serialize) -> Result<()> {
        let path = self.file(key);
        let text = serde_json::to_vec(finished).map_err(|source| Error::Json {
            path: path.clone(),
            what: "representable",
            source,
        })?;
        Ok(merge::io::write_file(&path, &text, true)?)
    }

    /// Forgets the result under a key, if there is one.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn forget(&self, key: &str) -> Result<()> {
        let path = self.file(key);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, source))
            }
            _ => Ok(()),
        }
    }

    /// Removes the folder: the report holds everything now.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.folder, source))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
}

/// A name for everything that a result depends on, in hexadecimal.
#[must_use]
pub fn key_of(of: &impl Serialize) -> String {
    // Everything that is asked about has a JSON form; if not, all of it is one key, which
    // could only make a result be computed again.
    let text = serde_json::to_vec(of).unwrap_or_default();
    hexadecimal(&Sha256::digest(&text)[..16])
}
