//! Files that appear whole or not at all.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempPath};

use crate::io::folder::folder_of;
use crate::{Error, Result, WriteFault, platform};

/// How much of the target's name its temporary file has; a character has at most four bytes.
const MAX_NAME_CHARS: usize = 50;

/// A file beside its target, removed when dropped.
pub(super) struct PartialFile {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl PartialFile {
    /// Creates a file of `n_bytes` zeros (holes, which take no room yet) beside `target`.
    pub(super) fn create(target: &Path, n_bytes: u64) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Names end at 255 bytes on most disks, and this one is longer than the target's.
        let name: String = name.chars().take(MAX_NAME_CHARS).collect();
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        if let Some(permissions) = platform::new_file_permissions() {
            builder.permissions(permissions);
        }
        let temporary = builder
            .tempfile_in(folder_of(target))
            .map_err(|source| Error::io("create", target, source))?;
        let file = Self {
            temporary,
            target: target.into(),
        };
        // Not `fallocate`: writing into allocated blocks is several times slower.
        file.temporary
            .as_file()
            .set_len(n_bytes)
            .map_err(|source| Error::io("create", target, source))?;
        Ok(file)
    }

    /// Opens or creates the file `partial` of `n_bytes`, which stays where it is when this is dropped.
    /// Returns whether it was there in full length.
    pub(super) fn keep(partial: &Path, target: &Path, n_bytes: u64) -> Result<(Self, bool)> {
        let failed = |source| Error::io("create", target, source);
        let file = open_own(partial, true)?;
        let was_whole = file.metadata().map_err(failed)?.len() == n_bytes;
        file.set_len(n_bytes).map_err(failed)?;
        let mut path = TempPath::try_from_path(partial).map_err(failed)?;
        path.disable_cleanup(true);
        let file = Self {
            temporary: NamedTempFile::from_parts(file, path),
            target: target.into(),
        };
        Ok((file, was_whole))
    }

    /// Writes all of `bytes` from `first` on; from any thread.
    pub(super) fn write_at(&self, first: u64, bytes: &[u8]) -> Result<()> {
        platform::write_all_at(self.temporary.as_file(), bytes, first)
            .map_err(|source| Error::io("write", &self.target, source))
    }

    /// The name that it gets.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Another handle of the same file.
    pub(super) fn same_file(&self) -> Result<File> {
        self.temporary
            .as_file()
            .try_clone()
            .map_err(|source| Error::io("create", &self.target, source))
    }

    /// Waits until everything is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.temporary
            .as_file()
            .sync_all()
            .map_err(|source| Error::io("write", &self.target, source))
    }

    /// Gives the file its name; returns that. Without `force`, never in place of another file.
    pub(super) fn place(self, force: bool) -> Result<PathBuf> {
        let Self { temporary, target } = self;
        let placed = if force {
            temporary.persist(&target)
        } else {
            temporary.persist_noclobber(&target)
        };
        match placed {
            Ok(_) => Ok(target),
            Err(fault) if fault.error.kind() == ErrorKind::AlreadyExists => {
                Err(Error::TargetExists { path: target })
            }
            Err(fault) => Err(Error::io("rename a file to", &target, fault.error)),
        }
    }
}

/// Opens a file that a run before has left, for reading and writing, or makes a new one if it is to be
/// there. A file that others may have put in its place is refused: no link is followed, nothing is waited for, and
/// a file that has another owner or another name belongs to somebody else.
pub(super) fn open_own(path: &Path, is_made: bool) -> Result<File> {
    let failed = |source| Error::io("open", path, source);
    let not_ours = || {
        Error::Write(WriteFault::NotOurs {
            path: path.to_owned(),
        })
    };
    let mut options = platform::own_options();
    options.read(true).write(true);
    if is_made {
        let made = options.clone().create_new(true).open(path);
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map_err(failed),
        }
    }
    let file = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(failed(error)),
        // A link, or a pipe without a reader.
        Err(error) if path.symlink_metadata().is_ok_and(|found| !found.is_file()) => {
            let _: std::io::Error = error;
            return Err(not_ours());
        }
        opened => opened.map_err(failed)?,
    };
    match platform::is_own(&file).map_err(failed)? {
        true => Ok(file),
        false => Err(not_ours()),
    }
}

/// How long a process that was killed may take until the system has let its lock go.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file as this process's own, until it ends however it ends; none if another process has it.
pub(super) fn lock_file(path: &Path) -> Result<Option<File>> {
    let file = open_own(path, true)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(PATIENCE / 50);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", path, source)),
        }
    }
}

/// Gives all files their names, in order. If one cannot have its name, those before it are removed
/// again: none is better than half.
pub(super) fn place_all(
    files: impl Iterator<Item = PartialFile>,
    force: bool,
) -> Result<Vec<PathBuf>> {
    let mut placed = Vec::new();
    for file in files {
        match file.place(force) {
            Ok(path) => placed.push(path),
            Err(fault) => {
                for path in &placed {
                    // The first fault is the one to report.
                    let _ = std::fs::remove_file(path);
                }
                return Err(fault);
            }
        }
    }
    Ok(placed)
}

/// Removes a file if there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Makes the names in the folder of `target` last.
pub(super) fn sync_folder(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    platform::sync_folder(folder).map_err(|source| Error::io("sync", folder, source))
}

/// Refuses targets that cannot be written or must not be replaced.
pub(super) fn check_target(target: &Path, force: bool) -> Result<()> {
    if target.is_dir() || target.file_name().is_none() {
        return Err(Error::Write(WriteFault::TargetIsFolder {
            path: target.into(),
        }));
    }
    let folder = folder_of(target);
    if !folder.is_dir() {
        return Err(Error::Write(WriteFault::MissingFolder {
            folder: folder.into(),
        }));
    }
    // A dangling link counts: the rename would replace it.
    if !force && target.symlink_metadata().is_ok() {
        return Err(Error::TargetExists {
            path: target.into(),
        });
    }
    Ok(())
}

/// Refuses folders that cannot be made.
pub(super) fn check_new_folder(folder: &Path) -> Result<()> {
    let parent = folder_of(folder);
    if !parent.is_dir() {
        return Err(Error::Write(WriteFault::MissingFolder {
            folder: parent.into(),
        }));
    }
    match folder.symlink_metadata() {
        Ok(_) => Err(Error::TargetExists {
            path: folder.into(),
        }),
        Err(_) => Ok(()),
    }
}

/// Refuses to begin what the disk cannot hold.
pub(super) fn check_space(target: &Path, needed: u64) -> Result<()> {
    let folder = folder_of(target);
    let available = platform::available_bytes(folder)
        .map_err(|source| Error::io("look for space in", folder, source))?;
    if let Some(available) = available.filter(|&available| available < needed) {
        return Err(Error::Write(WriteFault::DiskSpace {
            folder: folder.into(),
            needed,
            available,
        }));
    }
    Ok(())
}
