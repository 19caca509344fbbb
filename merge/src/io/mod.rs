//! Checkpoint files in and out.

mod content;
mod safetensors;
mod source;
mod writer;

pub use source::{
    Checkpoint, Container, ObjectPath, OpaqueObject, OpenOptions, PathSegment, PlainValue, Root,
    SourceFile, SourceInfo, TensorEntry, TensorInfo, TensorSource,
};
pub use writer::{OutputContainer, WriteOptions, Writer, check_target};

use std::fs::File;
use std::path::Path;

use content::Content;

use crate::{Error, Result};

/// Opens a checkpoint of any supported kind, told apart by its first bytes, not by its name.
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is damaged.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    open_source(path, options).map(Checkpoint::new)
}

fn open_source(path: &Path, options: &OpenOptions) -> Result<Box<dyn TensorSource>> {
    let failed = |source| Error::io("open", path, source);
    let file = File::open(path).map_err(failed)?;
    match content::of(path, &file)? {
        Content::Safetensors => safetensors::open(path, file, options),
        Content::Torch => Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: "is a torch file, which this build does not read".into(),
        }),
        Content::Json => Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: "is a sharded model, which this build does not read".into(),
        }),
        Content::Unknown(looks_like) => Err(Error::UnknownFormat {
            path: path.into(),
            looks_like,
        }),
    }
}
