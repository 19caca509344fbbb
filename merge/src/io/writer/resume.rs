//! Outputs of several files that a later run can go on with: a ledger beside them says which files
//! are complete, and of what.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{atomic, shards};
use crate::{Error, Result};

/// What a ledger begins with.
const MARK: &str = "vlmerge.resume/1";

/// A line for each file of the largest model is far less.
const MAX_LEDGER_BYTES: u64 = 1 << 20;

/// The ledger of an output under way; no other run may hold it at the same time.
pub(super) struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the files are until they have their names, the index last.
    partials: Vec<PathBuf>,
    /// Files that were complete when the ledger was opened.
    done: BTreeSet<usize>,
    /// How many are complete by now.
    n_complete: AtomicUsize,
}

/// What a ledger says.
struct Entries {
    fingerprint: String,
    n_parts: usize,
    done: BTreeSet<usize>,
}

impl Ledger {
    /// Opens the ledger of an output of `n_parts` files. What it says is believed only if it is of the
    /// same fingerprint; else the files of that other output are removed.
    pub(super) fn open(target: &Path, fingerprint: &str, n_parts: usize) -> Result<Self> {
        let path = ledger_path(target);
        let failed = |source| Error::io("open", &path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::TargetBusy {
                    path: target.into(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let entries = read(&mut file, &path)?;
        let partials = |n_parts| {
            let parts = (0..n_parts).map(move |part| partial_path(target, part, n_parts));
            parts.chain([hidden(&shards::index_path(target), "partial")])
        };
        let done = match entries {
            Some(known) if known.fingerprint == fingerprint && known.n_parts == n_parts => {
                known.done
            }
            other => {
                for partial in other.iter().flat_map(|other| partials(other.n_parts)) {
                    atomic::remove(&partial)?;
                }
                file.set_len(0).map_err(failed)?;
                writeln!(file, "{MARK} {fingerprint} {n_parts}").map_err(failed)?;
                BTreeSet::new()
            }
        };
        Ok(Self {
            file: Mutex::new(file),
            partials: partials(n_parts).collect(),
            n_complete: AtomicUsize::new(done.len()),
            done,
            path,
        })
    }

    /// Whether a file was complete when the ledger was opened.
    pub(super) fn has(&self, part: usize) -> bool {
        self.done.contains(&part)
    }

    /// How many files are complete by now.
    pub(super) fn n_complete(&self) -> usize {
        self.n_complete.load(Ordering::Relaxed)
    }

    /// Forgets a file that turned out not to be what it should be.
    pub(super) fn forget(&mut self, part: usize) {
        if self.done.remove(&part) {
            self.n_complete.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where a file is until it has its name.
    pub(super) fn partial(&self, part: usize) -> &Path {
        &self.partials[part]
    }

    /// Where the index is until it has its name.
    pub(super) fn index_partial(&self) -> &Path {
        &self.partials[self.partials.len() - 1]
    }

    /// Takes note that a file is complete and on the disk.
    pub(super) fn complete(&self, part: usize) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "done {part}")
            .and_then(|()| file.sync_data())
            .map_err(|source| Error::io("write", &self.path, source))?;
        self.n_complete.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the ledger: all files have their names.
    pub(super) fn close(mut self) -> Result<()> {
        self.partials.clear();
        atomic::remove(&self.path)
    }
}

impl Drop for Ledger {
    /// Where no file is complete there is nothing to go on with.
    fn drop(&mut self) {
        if self.n_complete() == 0 {
            for path in self.partials.iter().chain([&self.path]) {
                // What cannot be removed is in nobody's way.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// How many files of an output with this fingerprint are complete.
pub(super) fn n_complete(target: &Path, fingerprint: &str) -> usize {
    let path = ledger_path(target);
    let Ok(mut file) = File::open(&path) else {
        return 0;
    };
    match read(&mut file, &path) {
        Ok(Some(known)) if known.fingerprint == fingerprint => known.done.len(),
        _ => 0,
    }
}

/// Bytes on the disk that files of a stopped run have already.
pub(super) fn kept_bytes(target: &Path, n_parts: usize) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let partials = (0..n_parts).map(|part| partial_path(target, part, n_parts));
    let sizes = partials.filter_map(|path| std::fs::metadata(path).ok());
    sizes.map(|metadata| metadata.blocks() * 512).sum()
}

/// `None` for a ledger without a valid first line, which says nothing.
fn read(file: &mut File, path: &Path) -> Result<Option<Entries>> {
    let mut text = String::new();
    let read = file.take(MAX_LEDGER_BYTES).read_to_string(&mut text);
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
        Ok(_) => {}
    }
    // A last line that was cut has no end.
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (Some(MARK), Some(fingerprint), Some(Ok(n_parts))) =
        (words.next(), words.next(), words.next().map(str::parse))
    else {
        return Ok(None);
    };
    let done = lines.filter_map(|line| line.strip_prefix("done ")?.parse().ok());
    Ok(Some(Entries {
        fingerprint: fingerprint.to_owned(),
        n_parts,
        done: done.filter(|part| *part < n_parts).collect(),
    }))
}

/// The ledger beside `target`.
fn ledger_path(target: &Path) -> PathBuf {
    hidden(target, "resume")
}

/// The file of a part until it has its name.
fn partial_path(target: &Path, part: usize, n_parts: usize) -> PathBuf {
    hidden(&shards::shard_path(target, part, n_parts), "partial")
}

fn hidden(path: &Path, ending: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("model.safetensors")
    }

    #[test]
    fn what_is_complete_is_known_to_the_next_run_of_the_same_fingerprint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = target(&folder);
        let ledger = Ledger::open(&target, "one", 3).expect("opens");
        ledger.complete(1).expect("noted");
        std::fs::write(ledger.partial(1), "data").expect("written");
        let said = Ledger::open(&target, "one", 3).map(drop).expect_err("held");
        assert!(matches!(said, Error::TargetBusy { .. }), "{said}");
        drop(ledger);
        assert_eq!(n_complete(&target, "one"), 1);
        assert_eq!(n_complete(&target, "two"), 0);
        let again = Ledger::open(&target, "one", 3).expect("opens");
        assert_eq!([0, 1, 2].map(|part| again.has(part)), [false, true, false]);
        drop(again);
        // Another output removes what it finds.
        let other = Ledger::open(&target, "two", 3).expect("opens");
        assert!(!other.has(1) && !other.partial(1).exists());
        drop(other);
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("readable").count(),
            0
        );
    }

    #[test]
    fn a_line_that_was_cut_or_damaged_says_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = target(&folder);
        let ledger = ledger_path(&target);
        for (text, n_done) in [
            ("vlmerge.resume/1 one 12\ndone 3\ndone 1", 1),
            ("vlmerge.resume/1 one 2\ndone 3\ndone x\n\n", 0),
            ("vlmerge.resume/1 one", 0),
            ("vlmerge.resume/2 one 4\ndone 1\n", 0),
            ("", 0),
        ] {
            std::fs::write(&ledger, text).expect("written");
            assert_eq!(n_complete(&target, "one"), n_done, "{text}");
        }
        std::fs::write(&ledger, [0xff, 0xfe, b'\n']).expect("written");
        assert_eq!(n_complete(&target, "one"), 0);
    }
}
