//! Outputs of several files that a later run can go on with: a ledger beside them says which files
//! are complete, and of what.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{atomic, shards};
use crate::io::folder::folder_of;
use crate::{Error, Result, WriteFault, platform};

/// The mark at the beginning of a ledger.
const MARK: &str = "vlmerge.resume/2";

/// The mark at the beginning of the ledgers of every version.
const ANY_MARK: &str = "vlmerge.resume/";

/// A line for each file of the largest model is far less.
const MAX_LEDGER_BYTES: u64 = 1 << 20;

/// Files have five digits in their names.
const MAX_PARTS: usize = 99_999;

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

/// The contents of a ledger.
struct Entries {
    fingerprint: String,
    n_parts: usize,
    /// The part of the files' names that nobody can guess.
    token: String,
    done: BTreeSet<usize>,
}

impl Ledger {
    /// Opens the ledger of an output of `n_parts` files. Its contents count only if it has the
    /// same fingerprint; else the files of that other output are removed.
    pub(super) fn open(target: &Path, fingerprint: &str, n_parts: usize) -> Result<Self> {
        let path = ledger_path(target);
        let failed = |source| Error::io("open", &path, source);
        let mut file = atomic::open_own(&path, true)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::TargetBusy {
                    path: target.into(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let said = read(&mut file, &path)?;
        let (token, done) = match said {
            Said::Entries(known)
                if known.fingerprint == fingerprint && known.n_parts == n_parts =>
            {
                (known.token, known.done)
            }
            Said::Strange => return Err(Error::Write(WriteFault::NotOurs { path })),
            Said::Nothing | Said::Entries(_) => {
                remove_partials(target)?;
                let token = format!("{:016x}", RandomState::new().build_hasher().finish());
                file.set_len(0).map_err(failed)?;
                writeln!(file, "{MARK} {fingerprint} {n_parts} {token}").map_err(failed)?;
                (token, BTreeSet::new())
            }
        };
        let parts = (0..n_parts).map(|part| shards::shard_path(target, part, n_parts));
        let all = parts.chain([shards::index_path(target)]);
        Ok(Self {
            file: Mutex::new(file),
            partials: all
                .map(|path| hidden(&path, &format!("{token}.partial")))
                .collect(),
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
                // A file that cannot be removed is in nobody's way.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Removes the files of a stopped run of any output of this target: regular files called as one of its
/// parts, or its index, while they are under way.
fn remove_partials(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    let failed = |source| Error::io("read", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && is_partial(target, &entry.file_name()) {
            atomic::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file is called as a part or the index of `target` while it is under way.
fn is_partial(target: &Path, name: &OsStr) -> bool {
    let index = shards::index_path(target);
    let (Some(stem), Some(index), Some(name)) =
        (target.file_stem(), index.file_name(), name.to_str())
    else {
        return false;
    };
    let Some(inner) = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".partial"))
    else {
        return false;
    };
    let inner = match inner.rsplit_once('.') {
        Some((rest, token))
            if token.len() == 16 && token.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            rest
        }
        _ => inner,
    };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_part = inner
        .strip_prefix(&*stem.to_string_lossy())
        .is_some_and(|rest| {
            let rest = match target.extension().and_then(OsStr::to_str) {
                Some(extension) => rest.strip_suffix(&format!(".{extension}")).unwrap_or(""),
                None => rest,
            };
            let numbers = rest
                .strip_prefix('-')
                .and_then(|rest| rest.split_once("-of-"));
            numbers.is_some_and(|(part, all)| is_number(part) && is_number(all))
        });
    is_part || OsStr::new(inner) == index
}

/// The contents of an output's ledger, if it is there and of this program.
fn entries(target: &Path) -> Option<Entries> {
    let path = ledger_path(target);
    let mut file = atomic::open_own(&path, false).ok()?;
    match read(&mut file, &path) {
        Ok(Said::Entries(known)) => Some(known),
        _ => None,
    }
}

/// How many files of an output with this fingerprint are complete.
pub(super) fn n_complete(target: &Path, fingerprint: &str) -> usize {
    let known = entries(target).filter(|known| known.fingerprint == fingerprint);
    known.map_or(0, |known| known.done.len())
}

/// Bytes on the disk that files of a stopped run have already.
pub(super) fn kept_bytes(target: &Path, n_parts: usize) -> u64 {
    let Some(known) = entries(target).filter(|known| known.n_parts == n_parts) else {
        return 0;
    };
    let paths = (0..n_parts).map(|part| {
        let path = shards::shard_path(target, part, n_parts);
        hidden(&path, &format!("{}.partial", known.token))
    });
    let sizes = paths.filter_map(|path| std::fs::symlink_metadata(path).ok());
    sizes
        .map(|metadata| platform::occupied_bytes(&metadata))
        .sum()
}

/// The file at the place of a ledger.
enum Said {
    /// An empty file, or a ledger of another version or without a valid first line.
    Nothing,
    /// A file of another program.
    Strange,
    Entries(Entries),
}

fn read(file: &mut File, path: &Path) -> Result<Said> {
    let mut bytes = Vec::new();
    file.take(MAX_LEDGER_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io("read", path, source))?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(Said::Strange);
    };
    if !text.is_empty() && !text.starts_with(ANY_MARK) {
        return Ok(Said::Strange);
    }
    Ok(parsed(&text).map_or(Said::Nothing, Said::Entries))
}

fn parsed(text: &str) -> Option<Entries> {
    // A last line that was cut has no end.
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    let mut words = lines.next()?.split(' ');
    words.next().filter(|mark| *mark == MARK)?;
    let fingerprint = words.next()?.to_owned();
    let n_parts = words.next()?.parse().ok().filter(|n| *n <= MAX_PARTS)?;
    let token = words.next()?;
    let is_token = token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    let done = lines.filter_map(|line| line.strip_prefix("done ")?.parse().ok());
    is_token.then(|| Entries {
        fingerprint,
        n_parts,
        token: token.to_owned(),
        done: done.filter(|part| *part < n_parts).collect(),
    })
}

/// The ledger beside `target`.
fn ledger_path(target: &Path) -> PathBuf {
    hidden(target, "resume")
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
            (
                "vlmerge.resume/2 one 12 0123456789abcdef\ndone 3\ndone 1",
                1,
            ),
            (
                "vlmerge.resume/2 one 2 0123456789abcdef\ndone 3\ndone x\n\n",
                0,
            ),
            (
                "vlmerge.resume/2 one 18446744073709551615 0123456789abcdef\ndone 1\n",
                0,
            ),
            ("vlmerge.resume/2 one 12 ../../../../etc\ndone 1\n", 0),
            ("vlmerge.resume/2 one", 0),
            ("vlmerge.resume/3 one 4 0123456789abcdef\ndone 1\n", 0),
            ("", 0),
        ] {
            std::fs::write(&ledger, text).expect("written");
            assert_eq!(n_complete(&target, "one"), n_done, "{text}");
        }
        std::fs::write(&ledger, [0xff, 0xfe, b'\n']).expect("written");
        assert_eq!(n_complete(&target, "one"), 0);
    }

    #[cfg(unix)]
    #[test]
    fn what_was_planted_is_refused_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = target(&folder);
        let (ledger, victim) = (ledger_path(&target), folder.path().join("victim"));
        std::fs::write(&victim, "precious").expect("written");
        let refused = || {
            let said = Ledger::open(&target, "one", 3)
                .map(drop)
                .expect_err("refused");
            assert!(
                matches!(said, Error::Write(WriteFault::NotOurs { .. })),
                "{said}"
            );
            assert_eq!(
                std::fs::read_to_string(&victim).expect("readable"),
                "precious"
            );
        };
        std::os::unix::fs::symlink(&victim, &ledger).expect("linked");
        refused();
        std::fs::remove_file(&ledger).expect("removed");
        std::fs::hard_link(&victim, &ledger).expect("linked");
        refused();
        std::fs::remove_file(&ledger).expect("removed");
        std::fs::write(&ledger, "mine").expect("written");
        refused();
        std::fs::remove_file(&ledger).expect("removed");
        let pipe = std::process::Command::new("mkfifo").arg(&ledger).status();
        if pipe.is_ok_and(|status| status.success()) {
            refused();
            std::fs::remove_file(&ledger).expect("removed");
        }
        // However many parts a ledger claims, only files that are there are looked at.
        std::fs::write(&ledger, "vlmerge.resume/1 deadbeef 18446744073709551615\n")
            .expect("written");
        let stale = folder
            .path()
            .join(".model-00001-of-00002.safetensors.partial");
        std::fs::write(&stale, "old").expect("written");
        drop(Ledger::open(&target, "one", 3).expect("opens"));
        assert!(!stale.exists());
        assert!(!is_partial(
            &target,
            OsStr::new(".other-00001-of-00002.safetensors.partial")
        ));
        assert!(!is_partial(
            &target,
            OsStr::new(".model-notes.safetensors.partial")
        ));
    }
}
