//! Checkpoint files in and out.

mod source;
mod torch;
mod writer;

pub use source::{
    Checkpoint, Container, ObjectPath, OpaqueObject, OpenOptions, PathSegment, PlainValue, Root,
    SourceFile, SourceInfo, TensorEntry, TensorInfo, TensorSource,
};
pub use torch::{PickleCall, PickleFault, ZipFault};
#[doc(hidden)]
pub use torch::{open_bytes as open_torch_bytes, walk_pickle};
pub use writer::{OutputContainer, WriteOptions, Writer};

use std::path::Path;

use crate::Result;

/// Opens a checkpoint of any supported kind, told apart by its first bytes, not by its name.
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is damaged.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let failed = |action| {
        move |source| crate::Error::Io {
            action,
            path: path.into(),
            source,
        }
    };
    let file = std::fs::File::open(path).map_err(failed("open"))?;
    let mut start = [0; 16];
    let n_start =
        std::os::unix::fs::FileExt::read_at(&file, &mut start, 0).map_err(failed("read"))?;
    match torch::sniff(&start[..n_start]) {
        Some(_) => torch::open(path, file, options).map(Checkpoint::new),
        None => Err(crate::Error::UnknownFormat { path: path.into() }),
    }
}
