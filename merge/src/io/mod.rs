//! Checkpoint files in and out.

mod content;
mod folder;
mod pairs;
mod safetensors;
mod sharded;
mod source;
mod torch;
mod writer;

pub(crate) use folder::model_folder;
pub use source::{
    Checkpoint, Container, ObjectPath, OpaqueObject, OpenOptions, PathSegment, PlainValue, Root,
    SourceFile, SourceInfo, TensorEntry, TensorInfo, TensorSource,
};
pub use torch::{PickleCall, PickleFault, ZipFault};
#[doc(hidden)]
pub use torch::{open_bytes as open_torch_bytes, walk_pickle};
pub use writer::{
    OutputContainer, WriteOptions, Writer, check_file_target, check_target, n_complete_files,
    write_file,
};

use std::fs::File;
use std::path::Path;

use content::Content;

use crate::{Error, Result};

/// Opens a checkpoint of any supported kind, told apart by its first bytes, not by its name. A
/// folder stands for the model in it: its index json, or else its single model file.
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is damaged.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    if path.is_dir() {
        return open(&folder::model_file(path)?, options);
    }
    let (file, content) = look_at(path)?;
    let source = match content {
        Content::Json => sharded::open(path, file, options, |shard| {
            // Only one level deep: an index in the place of a shard is refused.
            let (file, content) = look_at(shard)?;
            open_single(shard, file, content, options)
        })?,
        other => open_single(path, file, other, options)?,
    };
    Ok(Checkpoint::new(source))
}

/// Opens a file and finds out what it is.
fn look_at(path: &Path) -> Result<(File, Content)> {
    let failed = |source| Error::io("open", path, source);
    // Asked first, for opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: "is not a regular file".into(),
        });
    }
    let file = File::open(path).map_err(failed)?;
    let content = content::of(path, &file)?;
    Ok((file, content))
}

/// Opens a model that is one file.
fn open_single(
    path: &Path,
    file: File,
    content: Content,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    let looks_like = match content {
        Content::Safetensors => return safetensors::open(path, file, options),
        Content::Torch => return torch::open(path, file, options),
        Content::Json => "is JSON, not a model".into(),
        Content::Unknown(looks_like) => looks_like,
    };
    Err(Error::UnknownFormat {
        path: path.into(),
        looks_like,
    })
}
