//! Folders in which one process works at a time.

use std::fs::File;
use std::path::Path;

use anyhow::Result;

/// The file as this process's own, until it ends however it ends; none if another process has it.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn own(path: &Path) -> Result<Option<File>> {
    Ok(merge::io::lock_file(path)?)
}
