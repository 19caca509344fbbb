//! Files of Windows.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use winapi_util::file;

/// `FILE_FLAG_OPEN_REPARSE_POINT`: opens a link itself instead of the file that it leads to.
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// `FILE_ATTRIBUTE_REPARSE_POINT`: links, junctions, and files that a service fetches when they are opened.
const REPARSE_POINT: u64 = 0x400;

/// `FILE_ATTRIBUTE_DIRECTORY`.
const DIRECTORY: u64 = 0x10;

pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(out, offset)
}

pub(super) fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The system writes names through its own journal, and flushes no folder on demand.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    match std::fs::metadata(folder)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// The permissions that make a temporary file like any other new file; none, because both take those of their folder.
pub(crate) fn new_file_permissions() -> Option<Permissions> {
    None
}

/// How to open a file that others may have replaced: a link is opened itself, and [`is_own`] refuses it.
pub(crate) fn own_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(OPEN_REPARSE_POINT);
    options
}

/// Whether an open file is a regular one that has one name. Its owner is not asked: who may write into a
/// folder of Windows is a matter of the folder.
pub(crate) fn is_own(file: &File) -> io::Result<bool> {
    if !file::typ(file)?.is_disk() {
        return Ok(false);
    }
    let found = file::information(file)?;
    let is_regular = found.file_attributes() & (REPARSE_POINT | DIRECTORY) == 0;
    Ok(is_regular && found.number_of_links() == 1)
}

/// Bytes on the disk that a file takes by now: all of its length from the beginning.
pub(crate) fn occupied_bytes(metadata: &Metadata) -> u64 {
    metadata.len()
}

/// Bytes that a user can still write below a folder; `None` if its file system has no size.
pub(crate) fn available_bytes(folder: &Path) -> io::Result<Option<u64>> {
    let disk = fs4::statvfs(folder)?;
    Ok((disk.total_space() > 0).then_some(disk.available_space()))
}

/// Which file it is, and when it was changed last. Windows does not show when a file's own record was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    volume: u64,
    index: u64,
    /// Of the content, then of the file as a whole.
    changed: [Option<u64>; 2],
}

impl Mark {
    /// Of an open file, with its description.
    pub(crate) fn of_file(file: &File, _metadata: &Metadata) -> io::Result<Self> {
        Ok(Self::of(&file::information(file)?))
    }

    /// Of the file at a place, with its size.
    pub(crate) fn of_path(path: &Path) -> io::Result<(Self, u64)> {
        let found = file::information(&File::open(path)?)?;
        Ok((Self::of(&found), found.file_size()))
    }

    /// Which file it is, whatever it is called.
    pub(crate) fn place(self) -> (u64, u64) {
        (self.volume, self.index)
    }

    fn of(found: &file::Information) -> Self {
        Self {
            volume: found.volume_serial_number(),
            index: found.file_index(),
            changed: [found.last_write_time(), found.creation_time()],
        }
    }
}
