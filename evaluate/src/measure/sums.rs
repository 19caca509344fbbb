//! Sums of a run that is stopped, beside the file that it writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::gram::{Gram, GramRecord, GramStore};
use merge::io::{OpenOptions, WriteOptions};

use crate::ranks::Collective;
use crate::{Error, Result};

/// Key of the number of batches in an unfinished file.
const BATCHES_DONE: &str = "batches_done";

/// Key of everything that the sums depend on.
const OF: &str = "of";

/// Sums of a run that was stopped.
#[derive(Clone, Debug)]
pub struct Unfinished {
    path: PathBuf,
    of: String,
}

impl Unfinished {
    /// Beside the file `out`, a file per rank; `of` stands for everything that the sums depend on.
    #[must_use]
    pub fn beside(out: &Path, of: String, ranks: &dyn Collective) -> Self {
        let mut path = out.as_os_str().to_owned();
        if ranks.size() > 1 {
            path.push(format!(".rank{}of{}", ranks.rank(), ranks.size()));
        }
        path.push(".unfinished.safetensors");
        Self {
            path: path.into(),
            of,
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The fingerprint of everything that the sums depend on.
    #[must_use]
    pub fn of(&self) -> &str {
        &self.of
    }

    /// The sums and the number of batches in them; nothing if there are none of this run.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&self) -> Result<(BTreeMap<String, Gram>, usize)> {
        if !self.path.exists() {
            return Ok((BTreeMap::new(), 0));
        }
        let file = merge::io::open(&self.path, &OpenOptions::default())?;
        let store = GramStore::new(file.into())?;
        let settings = store
            .record()
            .map(|record| record.settings)
            .unwrap_or_default();
        let is_ours = settings.get(OF) == Some(&self.of);
        let done = settings
            .get(BATCHES_DONE)
            .and_then(|done| done.parse().ok());
        let (true, Some(done)) = (is_ours, done) else {
            return Ok((BTreeMap::new(), 0));
        };
        let keys = store.checkpoint().tensors().map(|(key, _)| key.to_owned());
        let mut grams = BTreeMap::new();
        for key in keys {
            let gram = store.sum(&key)?;
            grams.insert(key, gram);
        }
        Ok((grams, done))
    }

    /// Writes the sums of the first `done` batches; the file is there whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        &self,
        grams: &BTreeMap<String, Gram>,
        record: &GramRecord,
        done: usize,
    ) -> Result<()> {
        let mut record = record.clone();
        record.rows = rows(grams);
        record.settings.insert(OF.to_owned(), self.of.clone());
        record
            .settings
            .insert(BATCHES_DONE.to_owned(), done.to_string());
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(&self.path)
        };
        let progress = merge::progress::Silent;
        Ok(merge::gram::write(
            grams, &record, false, &write, &progress,
        )?)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Rows per key.
#[must_use]
pub fn rows(grams: &BTreeMap<String, Gram>) -> BTreeMap<String, u64> {
    grams
        .iter()
        .map(|(key, gram)| (key.clone(), gram.rows()))
        .collect()
}
