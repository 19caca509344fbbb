//! One lazy view of every kind of checkpoint file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::aliases::Aliases;
use super::read_at::ReadAt;
use crate::platform::Mark;
use crate::{DType, Error, Result};

/// One step from the root object of a file towards a tensor or a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum PathSegment {
    /// A string key of a dictionary.
    Key(String),
    /// An integer key of a dictionary or an index of a list.
    Index(i64),
}

/// Where something stands in a file: dictionary keys and list indices from the root object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ObjectPath(pub Vec<PathSegment>);

impl fmt::Display for ObjectPath {
    /// Segments joined by dots, as published code spells nested names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(".")?;
            }
            match segment {
                PathSegment::Key(key) => f.write_str(key)?,
                PathSegment::Index(index) => write!(f, "{index}")?,
            }
        }
        Ok(())
    }
}

/// Shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: DType,
    /// Sizes of the axes; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Readers have checked that the product does not overflow.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the row-major data. Readers have checked that the product does not overflow.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.dtype.bytes_of(self.n_elements()) as u64
    }

    /// The index, one number per axis, of an element counted in row-major order.
    #[must_use]
    pub fn index_of(&self, mut element: usize) -> Vec<usize> {
        let axes = self.shape.iter().rev();
        let mut index: Vec<usize> = axes
            .map(|&size| {
                let at = element % size.max(1);
                element /= size.max(1);
                at
            })
            .collect();
        index.reverse();
        index
    }
}

/// A tensor of a file: where it stands, and what it is called within the chosen root.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// Dictionary keys and list indices from the root object of the file.
    pub path: ObjectPath,
    /// The name within the chosen root; `None` for tensors outside it, e.g. optimizer moments.
    pub name: Option<String>,
    /// Shape and dtype.
    pub info: TensorInfo,
}

impl TensorEntry {
    /// A tensor that stands in the root object under its name.
    #[must_use]
    pub fn named(name: String, info: TensorInfo) -> Self {
        Self::renamed(name.clone(), name, info)
    }

    /// A tensor that stands in the root object under `key` and is called `name`.
    #[must_use]
    pub fn renamed(key: String, name: String, info: TensorInfo) -> Self {
        Self {
            path: ObjectPath(vec![PathSegment::Key(key)]),
            name: Some(name),
            info,
        }
    }
}

/// The kind of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Container {
    /// A single safetensors file.
    Safetensors,
    /// A zip archive as `torch.save` writes since 1.6.
    TorchZip,
    /// The stream of pickles and raw storages that `torch.save` wrote before 1.6.
    TorchLegacy,
    /// A GGUF file, or the parts of one.
    Gguf,
    /// A msgpack file of Flax.
    Flax,
    /// A NumPy array, or an archive of them.
    Numpy,
    /// The initializers of an ONNX model.
    Onnx,
    /// The datasets of an HDF5 file, as Keras keeps weights.
    Hdf5,
    /// Several files named by an index json, or a directory that holds such an index.
    Sharded,
    /// A checkpoint of `torch.distributed.checkpoint`: a folder with `.metadata` and the files of its pieces.
    Distributed,
    /// Shards of safetensors, a file or several for each process of a training run, with boxes of tensors.
    Shards,
    /// One torch file per process of a training run, with parts of tensors.
    Ranks,
    /// A folder of DeepSpeed, with a file for each rank.
    DeepSpeed,
    /// A folder of Megatron-LM, with a file for each rank.
    Megatron,
    /// No file: the result of a merge that was kept in memory.
    Memory,
}

/// A file that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
    /// The server's name for this version of a remote file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The facts that tell whether a file of this machine is still the one that was opened.
    #[serde(skip)]
    pub stamp: Option<Stamp>,
}

/// Which file it is, how long, and when it was changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    mark: Mark,
    n_bytes: u64,
}

impl Stamp {
    /// Of an open file, with the system's description of it.
    pub(crate) fn of_file(file: &File, metadata: &Metadata) -> io::Result<Self> {
        Ok(Self {
            mark: Mark::of_file(file, metadata)?,
            n_bytes: metadata.len(),
        })
    }

    /// Of the file at a place.
    fn of_path(path: &Path) -> io::Result<Self> {
        let (mark, n_bytes) = Mark::of_path(path)?;
        Ok(Self { mark, n_bytes })
    }
}

impl SourceFile {
    /// Whether both are one file of this machine, whatever it is called.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        let place = |file: &Self| file.stamp.map(|stamp| stamp.mark.place());
        place(self).is_some() && place(self) == place(other)
    }

    /// A file that is known by place and size alone, such as one that is named but was not opened.
    #[must_use]
    pub fn named(path: impl Into<PathBuf>, n_bytes: u64) -> Self {
        Self {
            path: path.into(),
            n_bytes,
            etag: None,
            stamp: None,
        }
    }

    /// Of a file that was opened.
    pub(crate) fn of(path: &Path, file: &dyn ReadAt) -> Self {
        Self {
            path: path.into(),
            n_bytes: file.n_bytes(),
            etag: file.etag(),
            stamp: file.stamp(),
        }
    }

    /// Of a file of this machine that is going to be opened; `None` if the system does not show it.
    pub(crate) fn seen(path: &Path) -> Option<Self> {
        let stamp = Stamp::of_path(path).ok()?;
        Some(Self {
            path: path.into(),
            n_bytes: stamp.n_bytes,
            etag: None,
            stamp: Some(stamp),
        })
    }

    /// Checks that the file is still the one that was opened, unchanged.
    ///
    /// # Errors
    /// [`Error::InputChanged`].
    pub fn require_unchanged(&self) -> Result<()> {
        let Some(stamp) = self.stamp else {
            return Ok(());
        };
        match Stamp::of_path(&self.path) {
            Ok(now) if now == stamp => Ok(()),
            _ => Err(Error::InputChanged {
                path: self.path.clone(),
            }),
        }
    }
}

/// A dictionary (or list) of a file that directly or indirectly holds tensors.
#[derive(Clone, Debug, Serialize)]
pub struct Root {
    /// Path from the root object, dot-joined; empty for the root object itself.
    pub name: String,
    /// How many tensors it holds.
    pub n_tensors: usize,
    /// Their bytes.
    pub n_bytes: u64,
}

/// A plain value of a pickle beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum PlainValue {
    /// Python's `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer; those beyond 64 bits become [`PlainValue::Text`] in decimal.
    Integer(i64),
    /// A floating point number.
    Float(f64),
    /// A string.
    Text(String),
}

/// A Python object that is neither a tensor nor a plain value. It was not built: only its
/// description was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpaqueObject {
    /// Where it stands.
    pub path: ObjectPath,
    /// The class or function that loading it in Python would have called, `module.name`.
    pub callable: String,
}

/// Facts about a source from its headers alone.
#[derive(Clone, Debug, Serialize)]
pub struct SourceInfo {
    /// The file that was opened: the index of a split model; in a folder, the model found there.
    pub path: PathBuf,
    /// The kind of file.
    pub container: Container,
    /// Every file behind the source, in order.
    pub files: Vec<SourceFile>,
    /// String metadata: a safetensors header's `__metadata__`, or the provenance record of a
    /// torch file that this program wrote.
    pub metadata: BTreeMap<String, String>,
    /// All places that hold tensors, the best first.
    pub roots: Vec<Root>,
    /// The name of the chosen root.
    pub root: String,
    /// Plain values beside the tensors, in file order.
    pub values: Vec<(ObjectPath, PlainValue)>,
    /// Python objects that were skipped, in file order.
    pub opaque: Vec<OpaqueObject>,
}

/// Tensors of a file: names, shapes and dtypes at once, data on request.
///
/// Implementations check every offset against the file when they are opened, so that a later read
/// can fail only if the file changes or its data are damaged.
pub trait TensorSource: Send + Sync {
    /// The facts in the headers.
    fn info(&self) -> &SourceInfo;

    /// Every tensor of the file, whatever its root, in file order.
    fn tensors(&self) -> &[TensorEntry];

    /// Other names of tensors in the chosen root, each with the name that the tensor goes by: tied
    /// tensors are one tensor. An alias may be among [`TensorSource::tensors`], too; what it stands for
    /// always is, and is no alias.
    fn aliases(&self) -> Aliases {
        Aliases::new()
    }

    /// The type in which tensor `index` is stored, narrower than the type it is read as where it is computed.
    fn stored_dtype(&self, index: usize) -> DType {
        self.tensors()[index].info.dtype
    }

    /// The name of the codes that tensor `index` is stored in, where its dtype is only what they are read as.
    fn stored_as(&self, _index: usize) -> Option<&str> {
        None
    }

    /// Whether the values of tensor `index` are not those of a file: an adapter is merged into them, codes
    /// are read as numbers, or rows stand in another order.
    fn is_computed(&self, _index: usize) -> bool {
        false
    }

    /// The origin of an element of tensor `index` that is no finite number, where it is another file than
    /// [`SourceInfo::path`].
    ///
    /// # Errors
    /// When a file cannot be read.
    fn blamed(&self, _index: usize, _element: usize) -> Result<Option<Blamed>> {
        Ok(None)
    }

    /// Most bytes that are kept in memory from one read to the next, where tensors are computed.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Reads elements `first..` of tensor `index` of [`TensorSource::tensors`], in row-major order
    /// and little-endian, until `out` is full. Where elements share bytes, `first` is a multiple of 4.
    ///
    /// # Errors
    /// When the file cannot be read, was cut since it was opened, or fails its checksum.
    ///
    /// # Panics
    /// May panic if `index` or the range is outside the tensor: a fault of the caller.
    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()>;
}

/// An element of a file that is no finite number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blamed {
    /// The file.
    pub path: PathBuf,
    /// The tensor in it.
    pub key: String,
    /// The element, one number per axis.
    pub index: Vec<usize>,
}

/// How to open a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The root to use instead of the one found by rule, dot-joined.
    pub root: Option<String>,
    /// Keep the names, shapes and order of rows of a container that has its own.
    pub raw: bool,
}

/// A checkpoint opened by [`crate::io::open`]: a source, and its tensors by name.
pub struct Checkpoint {
    source: Box<dyn TensorSource>,
    names: BTreeMap<String, usize>,
    /// Other names; none of them is in `names`.
    aliases: Aliases,
    duplicate: Option<String>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Wraps a source and indexes the names of its chosen root. Of a tied tensor's names it lists the one
    /// that the tensor goes by, and finds it by any.
    #[must_use]
    pub fn new(source: Box<dyn TensorSource>) -> Self {
        let mut names = BTreeMap::new();
        let mut duplicate = None;
        for (index, entry) in source.tensors().iter().enumerate() {
            if let Some(name) = &entry.name
                && names.insert(name.clone(), index).is_some()
            {
                duplicate.get_or_insert_with(|| name.clone());
            }
        }
        let aliases = source.aliases();
        for name in aliases.keys() {
            names.remove(name);
        }
        Self {
            source,
            names,
            aliases,
            duplicate,
            notes: Vec::new(),
        }
    }

    /// The source behind the names, for a view of it.
    pub(crate) fn into_source(self) -> Box<dyn TensorSource> {
        self.source
    }

    /// With something that users should know of how it was found.
    pub(crate) fn with_note(mut self, note: Option<String>) -> Self {
        self.notes.extend(note);
        self
    }

    /// Notes for users on how it was found, e.g. which other models of its folder were passed
    /// over.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The facts in the headers.
    #[must_use]
    pub fn info(&self) -> &SourceInfo {
        self.source.info()
    }

    /// The file that was opened, as in [`SourceInfo::path`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.info().path
    }

    /// The source behind the names.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        self.source.as_ref()
    }

    /// Other names of tensors, each with the name that [`Checkpoint::tensors`] lists: tied tensors
    /// are one tensor.
    #[must_use]
    pub fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// The name that a tensor goes by: `name` itself unless it is an alias.
    #[must_use]
    pub fn name_of<'n>(&'n self, name: &'n str) -> &'n str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.names.get(self.name_of(name)).copied()
    }

    /// Names of the chosen root in order, with shape and dtype; a tied tensor once.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.names
            .iter()
            .map(|(name, &index)| (name.as_str(), &self.source.tensors()[index].info))
    }

    /// Shape and dtype of a tensor of the chosen root.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let index = self.index(name)?;
        Some(&self.source.tensors()[index].info)
    }

    /// The type in which a tensor of the chosen root is stored: its dtype, unless it is computed.
    #[must_use]
    pub fn stored_dtype(&self, name: &str) -> Option<DType> {
        let index = self.index(name)?;
        Some(self.source.stored_dtype(index))
    }

    /// The name of the codes that a tensor of the chosen root is stored in; `None` if its dtype is what it is stored in.
    #[must_use]
    pub fn stored_as(&self, name: &str) -> Option<&str> {
        self.source.stored_as(self.index(name)?)
    }

    /// Whether the values of a tensor are computed as they are read: an adapter is merged into them, codes
    /// are read as numbers, or rows stand in another order.
    #[must_use]
    pub fn is_computed(&self, name: &str) -> bool {
        self.index(name)
            .is_some_and(|index| self.source.is_computed(index))
    }

    /// The origin of an element of a tensor that is no finite number, where it is another file than the one that was
    /// opened.
    ///
    /// # Errors
    /// When there is no such tensor, or a file cannot be read.
    pub(crate) fn blamed(&self, name: &str, element: usize) -> Result<Option<Blamed>> {
        let index = self.index(name).ok_or_else(|| self.missing(name))?;
        self.source.blamed(index, element)
    }

    /// Shape and dtype of a tensor that must be there.
    ///
    /// # Errors
    /// [`Error::MissingKey`] with the nearest name.
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// Reads elements `first..` of `name`, row-major and little-endian, until `out` is full.
    ///
    /// # Errors
    /// As [`TensorSource::read`], and [`Error::MissingKey`].
    pub fn read(&self, name: &str, first: usize, out: &mut [u8]) -> Result<()> {
        let index = self.index(name).ok_or_else(|| self.missing(name))?;
        self.source.read(index, first, out)
    }

    /// All bytes of `name`, row-major and little-endian. Meant for small tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_all(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.require(name)?.n_bytes() as usize];
        self.read(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Checks that every name of the chosen root belongs to one tensor only, as a merge needs.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`] naming the first offender.
    pub fn require_unique_names(&self) -> Result<()> {
        match &self.duplicate {
            Some(key) => Err(Error::DuplicateKey {
                path: self.path().into(),
                key: key.clone(),
            }),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> Error {
        let nearest = self
            .names
            .keys()
            .max_by(|a, b| {
                strsim::jaro(a, name)
                    .total_cmp(&strsim::jaro(b, name))
                    .then_with(|| b.cmp(a))
            })
            .cloned();
        Error::MissingKey {
            path: self.path().into(),
            key: name.to_owned(),
            nearest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TensorInfo;
    use crate::DType;

    #[test]
    fn an_index_counts_the_last_axis_fastest() {
        let index = |element, shape: &[usize]| {
            let info = TensorInfo {
                dtype: DType::U8,
                shape: shape.to_vec(),
            };
            info.index_of(element)
        };
        assert_eq!(index(0, &[]), Vec::<usize>::new());
        assert_eq!(index(7, &[2, 4]), [1, 3]);
        assert_eq!(index(23, &[2, 3, 4]), [1, 2, 3]);
    }
}
