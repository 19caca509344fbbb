//! Folders in which one process works at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a process that was killed may take until the system has let its lock go.
const PATIENCE: Duration = Duration::from_secs(1);

/// The file as this process's own, until it ends however it ends; none if another process has it.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn own(path: &Path) -> Result<Option<File>> {
    let failed = || format!("cannot lock {}", path.display());
    let file = File::create(path).with_context(failed)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(PATIENCE / 50);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
    }
}
