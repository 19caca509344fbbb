//! The streaming writer: sizes first, data in any order from any thread, then one atomic rename.

mod atomic;
mod flusher;
mod gguf;
mod layout;
mod names;
mod options;
mod pickle;
mod resume;
mod safetensors;
mod shards;
mod torch;
mod zip;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use atomic::PartialFile;
use flusher::Flusher;
use gguf::{GgufLayout, Place};
use layout::Layout;
use names::{aliases_of, check_names};
use resume::Ledger;
use safetensors::SafetensorsLayout;
use torch::TorchLayout;

pub use options::{OutputContainer, WriteOptions};

use super::Aliases;
use crate::{Error, Result, TensorInfo, WriteFault};

/// Checks that a single file could be written, before any work is done for it.
///
/// # Errors
/// When the target exists (without `force`) or is a folder, or its own folder does not exist.
pub fn check_file_target(path: &Path, force: bool) -> Result<()> {
    atomic::check_target(path, force)
}

/// The file as this process's own, made if it is not there, until the process ends however it ends; none if
/// another process has it.
///
/// # Errors
/// When the file cannot be made or locked, or is no file of this user alone.
pub fn lock_file(path: &Path) -> Result<Option<std::fs::File>> {
    atomic::lock_file(path)
}

/// Writes a small file as a whole: beside its target, synced, renamed. Whoever opens `path` sees the
/// old file or the new one.
///
/// # Errors
/// When the target exists (without `force`), is a folder, or cannot be written.
pub fn write_file(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    ReadyFile::new(path, bytes, force)?.0.place(force)?;
    atomic::sync_folder(path)
}

/// A small file that is complete and on the disk, but does not have its name yet. Dropped, it is removed.
pub struct ReadyFile(PartialFile);

impl ReadyFile {
    /// Writes the file beside its target.
    ///
    /// # Errors
    /// When the target exists (without `force`), is a folder, or cannot be written.
    pub fn new(path: &Path, bytes: &[u8], force: bool) -> Result<Self> {
        atomic::check_target(path, force)?;
        let file = PartialFile::create(path, bytes.len() as u64)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        Ok(Self(file))
    }
}

/// The files that go with the weights into a model folder.
#[derive(Default)]
pub struct Belongings {
    /// Files beside the weights.
    pub files: Vec<ReadyFile>,
    /// Files of an older model in the folder, which are removed.
    pub stale: Vec<PathBuf>,
}

/// The tensors of an output, and their other names.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Names, shapes and dtypes, in the order in which they are stored.
    pub tensors: &'a [(String, TensorInfo)],
    /// Other names, each with that of a tensor. A safetensors file records them in its metadata; in a
    /// torch file they are of one storage.
    pub aliases: &'a Aliases,
}

/// An output file under way, or several if it is split. Dropping it without [`Writer::finish`]
/// leaves no trace.
pub struct Writer {
    options: WriteOptions,
    tensors: Vec<Target>,
    parts: Vec<Part>,
    /// Names the parts if there are several.
    index: Option<PartialFile>,
    /// Which parts are complete, if a later run may go on with them.
    ledger: Option<Ledger>,
    /// Runs only if the output is synced.
    flusher: Option<Flusher>,
}

/// Where the data of a tensor go.
struct Target {
    name: String,
    n_bytes: u64,
    /// Index of its file in [`Writer::parts`].
    part: usize,
    /// Its index among the tensors of that file.
    within: usize,
    /// Where its data begin in that file.
    start: u64,
    /// How many of its bytes have been written.
    written: AtomicU64,
}

/// One file under way.
struct Part {
    file: PartialFile,
    layout: Box<dyn Layout>,
}

impl Writer {
    /// Creates temporary files beside the target and lays them out. Tensors are stored in the
    /// order given. `metadata` may hold placeholders: [`Writer::finish`] takes the final values,
    /// which must not be longer.
    ///
    /// # Errors
    /// When the target exists (without `force`), its folder cannot be written, two tensors have
    /// the same name, or the disk has no room for the whole output.
    pub fn create(
        tensors: &[(String, TensorInfo)],
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
    ) -> Result<Self> {
        let aliases = &Aliases::new();
        Self::open(Contents { tensors, aliases }, metadata, options, None)
    }

    /// As [`Writer::create`], for tensors with other names.
    ///
    /// # Errors
    /// As [`Writer::create`], and [`WriteFault::Alias`].
    pub fn create_tied(
        contents: Contents<'_>,
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
    ) -> Result<Self> {
        Self::open(contents, metadata, options, None)
    }

    /// As [`Writer::create_tied`], but an output of several safetensors files is kept if it is not finished,
    /// as soon as one of its files is complete: the next writer of the same `fingerprint` goes on
    /// with it. The fingerprint must stand for everything that the bytes depend on.
    ///
    /// # Errors
    /// As [`Writer::create_tied`], and [`Error::TargetBusy`] while another writer has this target.
    pub fn resume(
        contents: Contents<'_>,
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
        fingerprint: &str,
    ) -> Result<Self> {
        Self::open(contents, metadata, options, Some(fingerprint))
    }

    fn open(
        contents: Contents<'_>,
        metadata: &BTreeMap<String, String>,
        options: &WriteOptions,
        fingerprint: Option<&str>,
    ) -> Result<Self> {
        let Shape {
            runs,
            layouts,
            container,
        } = shape(contents, metadata, options)?;
        let tensors = contents.tensors;
        let mut targets: Vec<Target> = (runs.iter().enumerate())
            .flat_map(|(part, run)| targets(tensors, run, part, layouts[part].as_ref()))
            .collect();
        let can_resume = runs.len() > 1 && container == OutputContainer::Safetensors;
        let mut ledger = match fingerprint.filter(|_| can_resume) {
            None => None,
            Some(fingerprint) => Some(Ledger::open(&options.path, fingerprint, runs.len())?),
        };
        let mut parts = Vec::with_capacity(runs.len());
        for (part, layout) in layouts.into_iter().enumerate() {
            let path = part_path(&options.path, part, runs.len());
            let file = match &mut ledger {
                None => PartialFile::create(&path, layout.n_bytes())?,
                Some(ledger) => {
                    let partial = ledger.partial(part).to_owned();
                    let (file, was_whole) = PartialFile::keep(&partial, &path, layout.n_bytes())?;
                    if !was_whole {
                        ledger.forget(part);
                    }
                    file
                }
            };
            parts.push(Part { file, layout });
        }
        if let Some(ledger) = &ledger {
            for target in targets.iter_mut().filter(|target| ledger.has(target.part)) {
                target.written = AtomicU64::new(target.n_bytes);
            }
        }
        let index = match (runs.len(), container) {
            // The parts of a GGUF file count themselves.
            (1, _) | (_, OutputContainer::Gguf) => None,
            _ => {
                // Aliases in safetensors files are no entries of the files.
                let listed = match container {
                    OutputContainer::Safetensors => &Aliases::new(),
                    _ => contents.aliases,
                };
                let of = Contents {
                    tensors,
                    aliases: listed,
                };
                Some(create_index(of, &runs, options, ledger.as_ref())?)
            }
        };
        let flusher = match options.sync {
            false => None,
            true => {
                let files = parts.iter().map(|part| part.file.same_file());
                Some(Flusher::start(files.collect::<Result<_>>()?))
            }
        };
        Ok(Self {
            options: options.clone(),
            tensors: targets,
            parts,
            index,
            ledger,
            flusher,
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
        let n_bytes = bytes.len() as u64;
        assert!(
            first_byte + n_bytes <= target.n_bytes,
            "the range lies within the tensor"
        );
        let part = &self.parts[target.part];
        part.file.write_at(target.start + first_byte, bytes)?;
        part.layout.note(target.within, first_byte, bytes);
        target.written.fetch_add(n_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Runs of tensors that are still to be written; the caller reports each to [`Writer::complete`].
    #[must_use]
    pub fn open_runs(&self) -> Vec<Range<usize>> {
        let Some(ledger) = &self.ledger else {
            return std::iter::once(0..self.tensors.len()).collect();
        };
        let of_part = |part: usize| {
            let first = self.tensors.partition_point(|target| target.part < part);
            let end = self.tensors.partition_point(|target| target.part <= part);
            first..end
        };
        let open = (0..self.parts.len()).filter(|&part| !ledger.has(part));
        open.map(of_part).collect()
    }

    /// How many files are complete, so that a later run goes on with the next.
    #[must_use]
    pub fn n_complete(&self) -> usize {
        self.ledger.as_ref().map_or(0, Ledger::n_complete)
    }

    /// Takes note that all tensors of one of [`Writer::open_runs`] are written: from here on a later run
    /// has no need to write them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn complete(&self, run: &Range<usize>) -> Result<()> {
        let (Some(ledger), Some(target)) = (&self.ledger, self.tensors.get(run.start)) else {
            return Ok(());
        };
        if self.options.sync {
            self.parts[target.part].file.sync()?;
        }
        ledger.complete(target.part)
    }

    /// Writes headers, syncs and renames; returns the files in place, an index last.
    ///
    /// # Errors
    /// When data are missing, the disk is full or fails, or the target appeared meanwhile (without
    /// `force`). Until the first rename the old target is untouched.
    pub fn finish(self, metadata: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
        self.finish_with(metadata, Belongings::default())
    }

    /// As [`Writer::finish`], for the weights of a model folder: when all is complete, the older model is
    /// removed, then the files beside the weights get their names, and the weights theirs.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn finish_with(
        self,
        metadata: &BTreeMap<String, String>,
        belongings: Belongings,
    ) -> Result<Vec<PathBuf>> {
        self.check_complete()?;
        let path = self.options.path.as_path();
        let sync = self.options.sync;
        if let Some(flusher) = self.flusher {
            let stopped = flusher.stop();
            stopped.map_err(|source| Error::io("write", path, source))?;
        }
        for part in &self.parts {
            for (start, bytes) in part.layout.frame(path, metadata)? {
                part.file.write_at(start, &bytes)?;
            }
            if sync {
                part.file.sync()?;
            }
        }
        if let Some(index) = self.index.as_ref().filter(|_| sync) {
            index.sync()?;
        }
        let force = self.options.force;
        if force && (self.parts.len() > 1 || !belongings.files.is_empty()) {
            // From here on there is no model until the new one is whole: never a mixture of both.
            atomic::remove(path)?;
            atomic::remove(&shards::index_path(path))?;
            let parts = self.parts.iter().map(|part| part.file.target());
            let own: HashSet<&Path> = parts.collect();
            for stale in belongings
                .stale
                .iter()
                .filter(|path| !own.contains(path.as_path()))
            {
                atomic::remove(stale)?;
            }
            if sync {
                atomic::sync_folder(path)?;
            }
        }
        let beside = belongings.files.into_iter().map(|file| file.0);
        let parts = self.parts.into_iter().map(|part| part.file);
        // The weights come last, so a model that has them is complete.
        let mut beside = atomic::place_all(beside, force)?;
        let mut placed = match atomic::place_all(parts.chain(self.index), force) {
            Ok(placed) => placed,
            Err(fault) => {
                for path in &beside {
                    // The first fault is the one to report.
                    let _ = std::fs::remove_file(path);
                }
                return Err(fault);
            }
        };
        placed.append(&mut beside);
        if let Some(ledger) = self.ledger {
            ledger.close()?;
        }
        if sync {
            atomic::sync_folder(path)?;
        }
        Ok(placed)
    }

    fn check_complete(&self) -> Result<()> {
        for target in &self.tensors {
            let written = target.written.load(Ordering::Relaxed);
            if written != target.n_bytes {
                return Err(Error::Write(WriteFault::Incomplete {
                    path: self.options.path.clone(),
                    key: target.name.clone(),
                    written,
                    n_bytes: target.n_bytes,
                }));
            }
        }
        Ok(())
    }
}

/// The layout of one file.
fn lay_out(
    options: &WriteOptions,
    container: OutputContainer,
    contents: Contents<'_>,
    metadata: &BTreeMap<String, String>,
    place: Place,
) -> Result<Box<dyn Layout>> {
    let path = options.path.as_path();
    Ok(match container {
        OutputContainer::Gguf => {
            let no_head = || WriteFault::GgufWithoutSettings { path: path.into() };
            let head = options.gguf.as_deref().ok_or_else(no_head)?;
            Box::new(GgufLayout::new(path, contents, head, metadata, place)?)
        }
        OutputContainer::Safetensors => Box::new(SafetensorsLayout::new(path, contents, metadata)?),
        OutputContainer::Torch => Box::new(TorchLayout::new(contents, None, metadata)),
        OutputContainer::TorchLightning => {
            Box::new(TorchLayout::new(contents, Some("state_dict"), metadata))
        }
        OutputContainer::TorchModel => {
            Box::new(TorchLayout::new(contents, Some("model"), metadata))
        }
    })
}

/// Where the tensors of one file go.
fn targets(
    tensors: &[(String, TensorInfo)],
    run: &Range<usize>,
    part: usize,
    layout: &dyn Layout,
) -> Vec<Target> {
    tensors[run.clone()]
        .iter()
        .enumerate()
        .map(|(within, (name, info))| Target {
            name: name.clone(),
            n_bytes: info.n_bytes(),
            part,
            within,
            start: layout.start(within),
            written: AtomicU64::new(0),
        })
        .collect()
}

/// The index of a split model, complete except for its name.
fn create_index(
    contents: Contents<'_>,
    runs: &[Range<usize>],
    options: &WriteOptions,
    ledger: Option<&Ledger>,
) -> Result<PartialFile> {
    let path = shards::index_path(&options.path);
    atomic::check_target(&path, options.force)?;
    let text = shards::index_text(contents, runs, &options.path);
    let file = match ledger {
        None => PartialFile::create(&path, text.len() as u64)?,
        Some(ledger) => PartialFile::keep(ledger.index_partial(), &path, text.len() as u64)?.0,
    };
    file.write_at(0, text.as_bytes())?;
    Ok(file)
}

/// Checks what [`Writer::create`] would refuse, without creating anything.
///
/// # Errors
/// As [`Writer::create`].
pub fn check_target(
    contents: Contents<'_>,
    metadata: &BTreeMap<String, String>,
    options: &WriteOptions,
) -> Result<()> {
    shape(contents, metadata, options).map(drop)
}

/// The folder of the target, if it is to be made.
fn new_folder(options: &WriteOptions) -> Option<&Path> {
    let folder = options.path.parent()?;
    let is_new = options.is_folder && folder != Path::new("") && !folder.is_dir();
    is_new.then_some(folder)
}

/// How many files of an output with this fingerprint a run before has completed, whose target these
/// are even if some have their names already.
#[must_use]
pub fn n_complete_files(path: &Path, fingerprint: &str) -> usize {
    resume::n_complete(path, fingerprint)
}

/// How an output is divided into files, and each file into tensors.
struct Shape {
    container: OutputContainer,
    runs: Vec<Range<usize>>,
    layouts: Vec<Box<dyn Layout>>,
}

/// Lays an output out; refuses one that cannot be written.
fn shape(
    contents: Contents<'_>,
    metadata: &BTreeMap<String, String>,
    options: &WriteOptions,
) -> Result<Shape> {
    let path = options.path.as_path();
    let container = match options.container {
        Some(container) => container,
        None => OutputContainer::from_extension(path)?,
    };
    check_names(path, contents)?;
    let tensors = contents.tensors;
    let new_folder = new_folder(options);
    match new_folder {
        Some(folder) => atomic::check_new_folder(folder)?,
        None => atomic::check_target(path, options.force)?,
    }
    let runs = shards::split(tensors, options.max_shard_bytes.unwrap_or(u64::MAX));
    let shares_bytes = |(_, info): &&(String, TensorInfo)| info.dtype.bits() < 8;
    if container != OutputContainer::Safetensors
        && let Some((key, info)) = tensors.iter().find(shares_bytes)
    {
        return Err(Error::Write(WriteFault::NoSuchDType {
            path: path.into(),
            key: key.clone(),
            dtype: info.dtype,
        }));
    }
    let has_one_file = match container {
        OutputContainer::TorchLightning | OutputContainer::TorchModel => true,
        OutputContainer::Gguf => path.extension() != Some("gguf".as_ref()),
        OutputContainer::Safetensors | OutputContainer::Torch => false,
    };
    if runs.len() > 1 && has_one_file {
        return Err(Error::Write(WriteFault::CannotShard { path: path.into() }));
    }
    let layouts = (runs.iter().enumerate())
        .map(|(number, run)| {
            let place = Place {
                number,
                n_parts: runs.len(),
                n_tensors: contents.tensors.len(),
            };
            let tensors = &tensors[run.clone()];
            let aliases = &aliases_of(tensors, contents.aliases);
            let contents = Contents { tensors, aliases };
            lay_out(options, container, contents, metadata, place)
        })
        .collect::<Result<Vec<_>>>()?;
    let needed: u64 = layouts.iter().map(|layout| layout.n_bytes()).sum();
    let needed = needed.saturating_sub(resume::kept_bytes(path, runs.len()));
    atomic::check_space(new_folder.unwrap_or(path), needed)?;
    for part in 0..runs.len() {
        if new_folder.is_some() {
            break;
        }
        atomic::check_target(&part_path(path, part, runs.len()), options.force)?;
    }
    Ok(Shape {
        container,
        runs,
        layouts,
    })
}

/// The file of part `part`: the target itself if there is only one.
fn part_path(target: &Path, part: usize, n_parts: usize) -> PathBuf {
    match n_parts {
        1 => target.to_owned(),
        _ => shards::shard_path(target, part, n_parts),
    }
}
