//! Files where systems differ: positions, links, owners, marks of change, space on the disk.
//!
//! Everything else uses `std::fs` alone. `docs/design.md` lists where Windows promises less than Unix.

#[cfg(unix)]
#[path = "unix.rs"]
mod system;
#[cfg(windows)]
#[path = "windows.rs"]
mod system;

#[cfg(not(any(unix, windows)))]
compile_error!("vlmerge knows the files of Unix and of Windows");

use std::fs::File;
use std::io;
use std::path::Path;

pub(crate) use system::{
    Mark, available_bytes, is_own, new_file_permissions, occupied_bytes, own_options,
};

/// Reads bytes from a position on; returns how many. The file's cursor may be anywhere afterwards.
///
/// # Errors
/// As the system's.
pub fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    system::read_at(file, out, offset)
}

/// Fills `out` from a position on. The file's cursor may be anywhere afterwards.
///
/// # Errors
/// As the system's, and `UnexpectedEof` if the file ends before.
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    system::read_exact_at(file, out, offset)
}

/// Writes all bytes from a position on. The file's cursor may be anywhere afterwards.
///
/// # Errors
/// As the system's.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    system::write_all_at(file, bytes, offset)
}

/// Waits until the names in a folder are on the disk. Windows has no such call, so there the folder is only
/// looked up.
///
/// # Errors
/// As the system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    system::sync_folder(folder)
}
