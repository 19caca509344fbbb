//! Files of Linux and macOS.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The mode that `open` takes for a new file; the umask removes the rest.
const NEW_FILE_MODE: u32 = 0o666;

pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(out, offset)
}

pub(super) fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(out, offset)
}

pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all())
}

/// The permissions that make a temporary file like any other new file.
pub(crate) fn new_file_permissions() -> Option<Permissions> {
    Some(Permissions::from_mode(NEW_FILE_MODE))
}

/// How to open a file that others may have replaced: no link is followed, nothing is waited for.
pub(crate) fn own_options() -> OpenOptions {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let mut options = OpenOptions::new();
    options.custom_flags(flags).mode(NEW_FILE_MODE);
    options
}

/// Whether an open file is a regular one that belongs to this user and has one name.
pub(crate) fn is_own(file: &File) -> io::Result<bool> {
    let found = file.metadata()?;
    let is_of_user = found.uid() == rustix::process::geteuid().as_raw();
    Ok(found.is_file() && found.nlink() == 1 && is_of_user)
}

/// Bytes on the disk that a file takes by now.
pub(crate) fn occupied_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Bytes that a user can still write below a folder; `None` if its file system has no size, as some
/// network file systems.
pub(crate) fn available_bytes(folder: &Path) -> io::Result<Option<u64>> {
    let disk = rustix::fs::statvfs(folder)?;
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok((disk.f_blocks > 0).then_some(available))
}

/// Which file it is, and when it was changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds: of the content, then of the file's own record.
    changed: [(i64, i64); 2],
}

impl Mark {
    /// Of an open file, with its description.
    pub(crate) fn of_file(_file: &File, metadata: &Metadata) -> io::Result<Self> {
        Ok(Self::of(metadata))
    }

    /// Of the file at a place, with its size.
    pub(crate) fn of_path(path: &Path) -> io::Result<(Self, u64)> {
        let metadata = std::fs::metadata(path)?;
        Ok((Self::of(&metadata), metadata.size()))
    }

    /// Which file it is, whatever it is called.
    pub(crate) fn place(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: [
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            ],
        }
    }
}
