//! Checkpoints of other machines: `hf://org/model@revision`, `s3://bucket/key`, `gs://bucket/key`,
//! `https://host/path`.
//!
//! Only the headers and the tensors that are asked for are read, by ranges of bytes, and kept on
//! disk in blocks: the next run reads nothing twice, and a broken one goes on where it stopped. A
//! file has one version from its opening to its last byte, told by its ETag and size; another
//! version midway is an error.

pub mod address;
#[cfg(feature = "remote")]
mod bucket;
#[cfg(feature = "remote")]
mod cache;
#[cfg(feature = "remote")]
mod file;
#[cfg(feature = "remote")]
mod hub;
#[cfg(feature = "remote")]
mod location;
#[cfg(feature = "remote")]
mod neighbors;
#[cfg(feature = "remote")]
mod session;
#[cfg(feature = "remote")]
mod single;
#[cfg(feature = "remote")]
mod store;
#[cfg(feature = "remote")]
mod web;

#[cfg(feature = "remote")]
pub use session::{Remote, RemoteOptions, Traffic};

use std::path::{Path, PathBuf};

use crate::Result;
use crate::io::read_at::ReadAt;
use crate::io::{Checkpoint, OpenOptions};

/// Bytes of remote files that came over the network so far.
#[cfg(feature = "remote")]
#[must_use]
pub fn fetched_bytes() -> u64 {
    Remote::installed_traffic().fetched_bytes
}

/// Without remote files nothing comes over the network.
#[cfg(not(feature = "remote"))]
#[must_use]
pub fn fetched_bytes() -> u64 {
    0
}

/// Opens a checkpoint by its address, with the session that was installed.
#[cfg(feature = "remote")]
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    Remote::installed().open(path, options)
}

/// Opens a file by its address, with the session that was installed.
#[cfg(feature = "remote")]
pub(crate) fn open_bytes(path: &Path) -> Result<Box<dyn ReadAt>> {
    Remote::installed().open_bytes(path)
}

/// Opens a file by its address, if it is there, with the session that was installed.
#[cfg(feature = "remote")]
pub(crate) fn open_if_there(path: &Path) -> Result<Option<Box<dyn ReadAt>>> {
    Remote::installed().open_if_there(path)
}

/// Names and addresses of the files beside a model, with the session that was installed.
#[cfg(feature = "remote")]
pub(crate) fn neighbors(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    Remote::installed().neighbors(path)
}

/// Says that this program reads no addresses.
#[cfg(not(feature = "remote"))]
pub(crate) fn neighbors(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    Err(not_built(path))
}

/// Says that this program reads no addresses.
#[cfg(not(feature = "remote"))]
pub(crate) fn open(path: &Path, _: &OpenOptions) -> Result<Checkpoint> {
    Err(not_built(path))
}

/// Says that this program reads no addresses.
#[cfg(not(feature = "remote"))]
pub(crate) fn open_bytes(path: &Path) -> Result<Box<dyn ReadAt>> {
    Err(not_built(path))
}

/// Says that this program reads no addresses.
#[cfg(not(feature = "remote"))]
pub(crate) fn open_if_there(path: &Path) -> Result<Option<Box<dyn ReadAt>>> {
    Err(not_built(path))
}

#[cfg(not(feature = "remote"))]
fn not_built(path: &Path) -> crate::Error {
    crate::RemoteFault::NotBuilt {
        address: path.display().to_string(),
    }
    .into()
}
