//! The streaming writer: sizes first, data in any order from any thread, then one atomic rename.

mod atomic;
mod safetensors;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use atomic::PartialFile;

use crate::{Error, Result, TensorInfo};

/// The kind of file to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputContainer {
    /// safetensors.
    Safetensors,
    /// A zip archive that `torch.load(weights_only=True)` opens: a flat dictionary of tensors.
    Torch,
    /// The same with the weights under `state_dict`, as Lightning has them.
    TorchLightning,
}

impl OutputContainer {
    /// The kind of file that the extension of `path` stands for: `.safetensors`; `.pt`, `.pth` and
    /// `.bin` for torch; `.ckpt` for Lightning.
    ///
    /// # Errors
    /// [`Error::UnknownOutput`] for any other.
    pub fn from_extension(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("pt" | "pth" | "bin") => Ok(Self::Torch),
            Some("ckpt") => Ok(Self::TorchLightning),
            _ => Err(Error::UnknownOutput { path: path.into() }),
        }
    }
}

/// Where and how to write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// The target file.
    pub path: PathBuf,
    /// The kind of file; by the extension of `path` unless given.
    pub container: Option<OutputContainer>,
    /// Split into files of at most this many tensor bytes, with an index json.
    pub max_shard_bytes: Option<u64>,
    /// Replace an existing target.
    pub force: bool,
    /// Wait for the disk before the rename, so that not even a power cut leaves half a file.
    pub sync: bool,
}

impl WriteOptions {
    /// A single new file at `path`, of the kind that its extension stands for, synced.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            container: None,
            max_shard_bytes: None,
            force: false,
            sync: true,
        }
    }
}

/// An output file under way. Dropping it without [`Writer::finish`] leaves no trace.
pub struct Writer {
    options: WriteOptions,
    tensors: Vec<Target>,
    part: Part,
}

/// Where the data of a tensor go.
struct Target {
    name: String,
    n_bytes: u64,
    /// Where its data begin in the file.
    start: u64,
    /// How many of its bytes have been written.
    written: AtomicU64,
}

/// One file under way.
struct Part {
    file: PartialFile,
    layout: safetensors::Layout,
}

impl Writer {
    /// Creates the temporary file beside the target and lays it out. Tensors are stored in the
    /// order given. `metadata` may hold placeholders: [`Writer::finish`] takes the final values,
    /// which must not be longer.
    ///
    /// # Errors
    /// When the target exists (without `force`), its folder cannot be written, or the disk has no
    /// room for the whole file.
    pub fn create(
        tensors: &[(String, TensorInfo)],
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
    ) -> Result<Self> {
        let path = options.path.as_path();
        let container = match options.container {
            Some(container) => container,
            None => OutputContainer::from_extension(path)?,
        };
        if container != OutputContainer::Safetensors || options.max_shard_bytes.is_some() {
            return Err(Error::UnknownOutput { path: path.into() });
        }
        check_names(path, tensors)?;
        atomic::check_target(path, options.force)?;
        let layout = safetensors::Layout::new(path, tensors, metadata)?;
        atomic::check_space(path, layout.n_bytes())?;
        let targets = tensors
            .iter()
            .enumerate()
            .map(|(index, (name, info))| Target {
                name: name.clone(),
                n_bytes: info.n_bytes(),
                start: layout.start(index),
                written: AtomicU64::new(0),
            })
            .collect();
        Ok(Self {
            options: options.clone(),
            tensors: targets,
            part: Part {
                file: PartialFile::create(path, layout.n_bytes())?,
                layout,
            },
        })
    }

    /// Writes bytes of tensor `index` from `first_byte` on. May be called from many threads; all
    /// bytes of all tensors must have been written once before [`Writer::finish`].
    ///
    /// # Errors
    /// When the disk is full or fails.
    ///
    /// # Panics
    /// When `index` or the range is outside the tensor: a fault of the caller.
    pub fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        let target = &self.tensors[index];
        assert!(
            first_byte + bytes.len() as u64 <= target.n_bytes,
            "the range lies within the tensor"
        );
        self.part.file.write_at(target.start + first_byte, bytes)?;
        target
            .written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes headers, syncs and renames; returns the files in place.
    ///
    /// # Errors
    /// When the disk is full or fails, or the target appeared meanwhile (without `force`); the old
    /// target is then untouched.
    pub fn finish(self, metadata: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
        for target in &self.tensors {
            let written = target.written.load(Ordering::Relaxed);
            if written != target.n_bytes {
                return Err(Error::Incomplete {
                    path: self.options.path.clone(),
                    key: target.name.clone(),
                    written,
                    n_bytes: target.n_bytes,
                });
            }
        }
        let Part { file, layout } = self.part;
        file.write_at(0, &layout.header(&self.options.path, metadata)?)?;
        if self.options.sync {
            file.sync()?;
        }
        let path = file.place(self.options.force)?;
        if self.options.sync {
            atomic::sync_folder(&path)?;
        }
        Ok(vec![path])
    }
}

/// Names must be unique: a reader would lose the others.
fn check_names(path: &Path, tensors: &[(String, TensorInfo)]) -> Result<()> {
    let mut seen = HashSet::new();
    match tensors.iter().find(|(name, _)| !seen.insert(name)) {
        Some((name, _)) => Err(Error::DuplicateKey {
            path: path.into(),
            key: name.clone(),
        }),
        None => Ok(()),
    }
}

/// Checks what [`Writer::create`] would refuse, without creating anything: a target that is in the
/// way, a folder that is missing, a disk without room for `n_bytes`.
///
/// # Errors
/// As [`Writer::create`].
pub fn check_target(options: &WriteOptions, n_bytes: u64) -> Result<()> {
    if options.container.is_none() {
        OutputContainer::from_extension(&options.path)?;
    }
    atomic::check_target(&options.path, options.force)?;
    atomic::check_space(&options.path, n_bytes)
}
