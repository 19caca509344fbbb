//! Checkpoint files in and out.

pub(crate) mod aliases;
mod assembled;
mod by_axes;
mod bytes;
mod content;
mod flax;
pub(crate) mod folder;
pub(crate) mod gguf;
mod hdf5;
mod memory;
mod numpy;
mod onnx;
mod overlaid;
mod pairs;
pub(crate) mod protobuf;
mod ranges;
pub(crate) mod read_at;
mod renamed;
mod safetensors;
mod sharded;
mod source;
mod torch;
mod trainer;
mod widened;
mod window;
mod writer;

pub use aliases::{ALIASES_KEY, Aliases};
pub(crate) use by_axes::{ByAxes, Order};
pub use bytes::{FileBytes, files_in};
pub use content::{is_no_file as not_fetched, require_fetched};
pub(crate) use folder::model_folder;
pub use gguf::head::GgufHead;
pub(crate) use memory::Memory;
pub use memory::without_values;
pub use overlaid::{Held, overlaid};
pub(crate) use ranges::row_major;
pub(crate) use renamed::Renamed;
pub use source::{
    Blamed, Checkpoint, Container, ObjectPath, OpaqueObject, OpenOptions, PathSegment, PlainValue,
    Root, SourceFile, SourceInfo, Stamp, TensorEntry, TensorInfo, TensorSource,
};
pub use torch::{PickleCall, PickleFault, ScriptFault, ZipFault};
#[doc(hidden)]
pub use torch::{open_bytes as open_torch_bytes, walk_pickle};
#[doc(hidden)]
pub use trainer::walk_distributed;
pub use writer::{
    Belongings, Contents, OutputContainer, ReadyFile, WriteOptions, Writer, check_file_target,
    check_target, lock_file, n_complete_files, write_file,
};

use std::fs::File;
use std::path::Path;

use content::Content;
use read_at::{FileAt, ReadAt};

use crate::layouts;
use crate::remote::address;
use crate::{Error, Result, SplitFault};

/// Opens a checkpoint of any supported kind, told apart by its first bytes, not by its name. A
/// folder stands for the model in it: its index json, or else its single model file. An address,
/// such as `hf://org/model@main`, is read through [`crate::remote`].
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is damaged.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    if address::is_address(path) {
        return crate::remote::open(path, options);
    }
    if path.is_dir() {
        return open_folder(path, options);
    }
    match trainer::folder_for(path)? {
        Some(folder) => match trainer::open(&folder, options)? {
            Some(opened) => whole(opened),
            None => open_with(path, options, &open_file),
        },
        None => open_with(path, options, &open_file),
    }
}

/// Opens the model of a folder: the file that loaders look for by its name, else what a trainer left in pieces, else
/// the single file that may be a model.
fn open_folder(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    let folder = &folder::snapshot(path)?;
    let names = folder::visible_files(folder)?;
    let in_pieces = trainer::name_in(folder)?;
    if in_pieces.is_some()
        && !folder::has_usual(&names)
        && let Some(mut opened) = trainer::open(folder, options)?
    {
        let others = folder::other_models(&names, trainer::is_of_model);
        let note = folder::Found {
            path: folder.clone(),
            passed_over: others,
        };
        opened.notes.extend(note.note());
        return whole(opened);
    }
    let mut found = match folder::model_among(folder, &names) {
        Err(Error::Split(SplitFault::NoModel { .. })) => {
            match trainer::open_below(folder, options)? {
                Some(opened) => return whole(opened),
                None => {
                    return Err(SplitFault::NoModel {
                        folder: folder.clone(),
                    }
                    .into());
                }
            }
        }
        found => found?,
    };
    let kind = in_pieces.map(|kind| format!("a {kind}"));
    found.passed_over.extend(kind);
    Ok(open(&found.path, options)?.with_note(found.note()))
}

/// The model of a folder that is not of this machine, whose files are called `names`, sorted.
///
/// # Errors
/// As [`folder::model_among`], and [`crate::TrainerFault::Remote`] for a model in pieces.
#[cfg(feature = "remote")]
pub(crate) fn model_far_away(folder: &Path, names: &[String]) -> Result<folder::Found> {
    match trainer::name_among(names) {
        Some(kind) if !folder::has_usual(names) => Err(crate::TrainerFault::Remote {
            folder: folder.into(),
            kind,
        }
        .into()),
        _ => folder::model_among(folder, names),
    }
}

/// A model that was in pieces.
fn whole(opened: trainer::Opened) -> Result<Checkpoint> {
    let mut checkpoint = layouts::tied(Checkpoint::new(opened.source))?;
    for note in opened.notes {
        checkpoint = checkpoint.with_note(Some(note));
    }
    Ok(checkpoint)
}

/// Opens a file, here or by its address, whatever is in it.
pub(crate) fn open_bytes(path: &Path) -> Result<Box<dyn ReadAt>> {
    match address::is_address(path) {
        true => crate::remote::open_bytes(path),
        false => open_file(path),
    }
}

/// Opens a checkpoint whose files are opened by `open_file`.
pub(crate) fn open_with(
    path: &Path,
    options: &OpenOptions,
    open_file: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
) -> Result<Checkpoint> {
    let look_at = |path: &Path| {
        let file = open_file(path)?;
        let content = content::of(path, file.as_ref())?;
        Ok::<_, Error>((file, content))
    };
    let (file, content) = look_at(path)?;
    let source = match content {
        Content::Json => sharded::open(path, file.as_ref(), options, |shard| {
            // Only one level deep: an index in place of a shard is refused.
            let (file, content) = look_at(shard)?;
            open_single(shard, file, content, options, open_file)
        })?,
        other => open_single(path, file, other, options, open_file)?,
    };
    let checkpoint = match source.info().container {
        Container::Gguf if !options.raw => crate::gguf::named(source)?,
        _ => Checkpoint::new(source),
    };
    layouts::tied(checkpoint)
}

/// Opens a file that is in memory, whatever it is, as tests and fuzz targets do. Files that it names are not there.
///
/// # Errors
/// As [`open`].
#[doc(hidden)]
pub fn open_in_memory(bytes: &[u8], options: &OpenOptions) -> Result<Checkpoint> {
    let path = Path::new("(memory)");
    open_with(path, options, &|asked| match asked == path {
        true => Ok(Box::new(bytes.to_vec()) as Box<dyn ReadAt>),
        false => Err(Error::io(
            "open",
            asked,
            std::io::ErrorKind::NotFound.into(),
        )),
    })
}

/// Opens a file of this machine.
fn open_file(path: &Path) -> Result<Box<dyn ReadAt>> {
    let failed = |source| Error::io("open", path, source);
    // Asked first, for opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: "is not a regular file".into(),
        });
    }
    let file = File::open(path).and_then(FileAt::new).map_err(failed)?;
    Ok(Box::new(file))
}

/// Opens a model that is one file.
fn open_single(
    path: &Path,
    file: Box<dyn ReadAt>,
    content: Content,
    options: &OpenOptions,
    open_part: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
) -> Result<Box<dyn TensorSource>> {
    let looks_like = match content {
        Content::Safetensors => return safetensors::open(path, file, options),
        Content::Gguf => return gguf::open(path, file, options, open_part),
        Content::Numpy => return numpy::open(path, file, options),
        Content::Flax => return flax::open(path, file, options),
        Content::Hdf5 => return hdf5::open(path, file, options),
        Content::Onnx => return onnx::open(path, file, options, open_part),
        Content::Torch => return torch::open(path, file, options),
        Content::Json => "is JSON, not a model".into(),
        Content::Unknown(looks_like) => looks_like,
    };
    Err(Error::UnknownFormat {
        path: path.into(),
        looks_like,
    })
}
