//! The folder of a run.
//!
//! ```text
//! recipe.yaml                    the settings, resolved
//! metrics.jsonl                  one line a step
//! events.out.tfevents.*          the same for TensorBoard
//! states/step-00000120/          model.safetensors and state.safetensors: where a run goes on
//! best.safetensors, best.json    the best weights by validation
//! model.safetensors              the last weights, when the run is over
//! SHA256SUMS                     checksums of both, then; each state has such a list, too
//! run.lock                       locked by the process that works here
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sums;
use crate::{Error, Result};

/// The file through which weights of other ranks pass.
const PASSING: &str = "experts";

/// The ending of a state's folder before it is complete.
const PARTIAL: &str = ".partial";

/// The files that a run keeps at the end.
const RESULTS: [&str; 2] = ["best.safetensors", "model.safetensors"];

/// The folder of a run, in which one process works at a time.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held until the process ends, however it ends.
    _lock: Option<Arc<File>>,
}

impl RunFolder {
    /// Makes the folder, or goes on with one that is there; of several ranks one `is_writer`, and
    /// clears away what a killed run has left.
    ///
    /// # Errors
    /// [`Error::RunBusy`] when another process works in it, and when the system does not let it.
    pub fn open(path: &Path, is_writer: bool) -> Result<Self> {
        let mut folder = Self {
            path: path.into(),
            _lock: None,
        };
        fs::create_dir_all(folder.states()).map_err(|e| Error::io("create", path, e))?;
        if !is_writer {
            return Ok(folder);
        }
        let lock = merge::io::lock_file(&folder.file("run.lock"))?;
        let lock = lock.ok_or_else(|| Error::RunBusy { path: path.into() })?;
        folder._lock = Some(Arc::new(lock));
        for name in folder.state_names()? {
            if name.ends_with(PARTIAL) {
                let partial = folder.states().join(&name);
                fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
            }
        }
        Ok(folder)
    }

    /// Whether a run was begun in this folder.
    #[must_use]
    pub fn is_begun(path: &Path) -> bool {
        path.join("recipe.yaml").exists()
    }

    /// The newest complete state of a run, where the folder has one; nothing is written.
    ///
    /// # Errors
    /// When the folder is there and cannot be listed.
    pub fn newest_in(path: &Path) -> Result<Option<PathBuf>> {
        let folder = Self {
            path: path.into(),
            _lock: None,
        };
        match folder.states().is_dir() {
            true => Ok(folder.kept()?.pop().map(|(_, state)| state)),
            false => Ok(None),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder for files that others are made of; what a killed run has left there goes when the run is resumed.
    #[must_use]
    pub fn passing(&self) -> PathBuf {
        self.states().join(format!("{PASSING}{PARTIAL}"))
    }

    fn states(&self) -> PathBuf {
        self.path.join("states")
    }

    fn state_names(&self) -> Result<Vec<String>> {
        names_in(&self.states())
    }

    /// Complete states, oldest first: the step, and the folder.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn kept(&self) -> Result<Vec<(u64, PathBuf)>> {
        let step = |name: &String| name.strip_prefix("step-")?.parse().ok();
        let names = self.state_names()?;
        let kept = names
            .iter()
            .filter_map(|name| Some((step(name)?, self.states().join(name))));
        Ok(kept.collect())
    }

    /// The newest complete state, where there is one and it can be listed.
    #[must_use]
    pub fn newest(&self) -> Option<PathBuf> {
        Some(self.kept().ok()?.pop()?.1)
    }

    /// Compares a state, and the results of a run that is over, with their checksums.
    ///
    /// # Errors
    /// [`Error::BadState`] when a file differs from the written one.
    pub fn check(path: &Path, state: &Path) -> Result<()> {
        sums::check(state)?;
        sums::check(path)
    }

    /// Checks that the newest state is the one after `step`: another process may have worked here since it was
    /// looked for.
    ///
    /// # Errors
    /// [`Error::RunBusy`].
    pub fn require_newest(&self, step: Option<u64>) -> Result<()> {
        match self.kept()?.last().map(|(step, _)| *step) == step {
            true => Ok(()),
            false => Err(Error::RunBusy {
                path: self.path.clone(),
            }),
        }
    }

    /// Notes the checksums of the results, when the run is over.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn seal(&self) -> Result<()> {
        let there = RESULTS.iter().filter(|name| self.file(name).exists());
        sums::write(&self.path, &there.copied().collect::<Vec<_>>())
    }

    /// Forgets the checksums of results that are about to change.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn unseal(&self) -> Result<()> {
        sums::remove(&self.path)
    }

    /// Keeps a state: `write` fills a folder, which gets its name when everything in it is on the
    /// disk. States beyond the newest `keep` then go.
    ///
    /// # Errors
    /// As `write`, and when the disk fails; the states before stay.
    pub fn keep(
        &self,
        step: u64,
        keep: usize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let states = self.states();
        let place = states.join(format!("step-{step:08}"));
        let partial = states.join(format!("step-{step:08}{PARTIAL}"));
        fs::create_dir_all(&partial).map_err(|e| Error::io("create", &partial, e))?;
        if let Err(error) = write(&partial) {
            // The first error is the one to tell of.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        let names = names_in(&partial)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        sums::write(&partial, &names)?;
        if place.exists() {
            fs::remove_dir_all(&place).map_err(|e| Error::io("remove", &place, e))?;
        }
        fs::rename(&partial, &place).map_err(|e| Error::io("rename", &partial, e))?;
        sync(&states)?;
        let kept = self.kept()?;
        for (_, old) in kept.iter().rev().skip(keep) {
            fs::remove_dir_all(old).map_err(|e| Error::io("remove", old, e))?;
        }
        Ok(place)
    }
}

/// The names of a folder's entries, sorted.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("list", folder, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Waits until a folder's entries are on the disk.
fn sync(folder: &Path) -> Result<()> {
    merge::platform::sync_folder(folder).map_err(|e| Error::io("sync", folder, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_states_go_and_a_failed_one_leaves_no_trace() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::open(temporary.path(), true).expect("it opens");
        let write = |place: &Path| {
            fs::write(place.join("a"), "a").map_err(|e| Error::io("write", place, e))
        };
        for step in [1, 5, 9] {
            folder.keep(step, 2, write).expect("it is kept");
        }
        let steps = |folder: &RunFolder| -> Vec<u64> {
            folder
                .kept()
                .expect("listed")
                .into_iter()
                .map(|(step, _)| step)
                .collect()
        };
        assert_eq!(steps(&folder), [5, 9]);
        let failed = folder.keep(12, 2, |place| {
            write(place)?;
            Err(Error::NotFinite { part: "x".into() })
        });
        assert!(failed.is_err());
        assert_eq!(steps(&folder), [5, 9]);
        fs::create_dir(temporary.path().join("states/step-00000012.partial")).expect("made");
        let said = RunFolder::open(temporary.path(), true)
            .map(drop)
            .expect_err("two at once");
        assert!(matches!(said, Error::RunBusy { .. }), "{said}");
        drop(folder);
        let folder = RunFolder::open(temporary.path(), true).expect("it opens");
        assert_eq!(folder.state_names().expect("listed").len(), 2);
    }
}
