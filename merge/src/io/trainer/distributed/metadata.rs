//! The contents of `.metadata`: tensors, their pieces, and the place of each.
//!
//! A pickle of a million pieces is a gigabyte of values. Tensors and places are taken out of it as it is read, and become
//! rows of numbers.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::places::Places;
use crate::io::protobuf::{put_varint, varint};
use crate::io::read_at::ReadAt;
use crate::io::torch::{self, ElementType, PickleFault, Taker, View};
use crate::io::trainer::info_of;
use crate::io::{ObjectPath, PathSegment, TensorInfo};
use crate::{Error, Result, TrainerFault};

/// Pieces that are looked at, each as often as it is referred to: older versions list one for each replica.
const LOOKED_AT: usize = 1 << 26;

/// The fault of more than that.
const TOO_MANY: PickleFault = PickleFault::TooManyObjects {
    limit: LOOKED_AT as u64,
};

/// The class of the entry of a tensor.
const TENSOR: &str = "TensorStorageMetadata";

/// Memory for the pieces and the places of a checkpoint, and for the names of tensors and files: about two million pieces.
const LIMIT_BYTES: usize = 48 << 20;

/// Memory for the paths of tensors and values.
const PATH_LIMIT_BYTES: usize = 32 << 20;

/// The parts of a checkpoint.
pub(super) struct Metadata {
    pub(super) tensors: Vec<Stored>,
    /// Where values stand that are no tensors.
    pub(super) values: Vec<ObjectPath>,
    /// The files, as they are named.
    pub(super) files: Names,
    /// Flattened names of tensors, by which places are found.
    pub(super) names: Names,
    pub(super) places: Places,
}

/// A tensor in pieces.
pub(super) struct Stored {
    /// The number of its flattened name.
    pub(super) name: u32,
    pub(super) path: ObjectPath,
    pub(super) info: TensorInfo,
    pub(super) chunks: Chunks,
}

/// Pieces of a tensor: for each the number of its axes, where it begins, the number of its axes, and how many elements it has.
#[derive(Clone)]
pub(super) struct Chunks {
    bytes: Arc<[u8]>,
    n: usize,
}

impl Chunks {
    /// Where each piece begins and its size.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Vec<usize>, Vec<usize>)> + '_ {
        let mut rest = &self.bytes[..];
        let numbers = |rest: &mut &[u8]| -> Option<Vec<usize>> {
            let n = varint(rest)?;
            (0..n).map(|_| varint(rest).map(|n| n as usize)).collect()
        };
        std::iter::from_fn(move || Some((numbers(&mut rest)?, numbers(&mut rest)?)))
    }
}

/// Names, each once, by their numbers.
#[derive(Default)]
pub(super) struct Names {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    n_bytes: usize,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let (name, number) = (Arc::<str>::from(name), self.names.len() as u32);
        // Twice the entries, for vectors and maps grow ahead.
        self.n_bytes += name.len() + 112;
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// The name of a number.
    pub(super) fn get(&self, number: u32) -> &Arc<str> {
        &self.names[number as usize]
    }

    /// All names, in the order of their numbers.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }
}

/// Reads the file.
pub(super) fn read(path: &Path, file: &dyn ReadAt) -> Result<Metadata> {
    read_within(path, file, LIMIT_BYTES)
}

/// The same, granting so much memory to names, pieces and places.
pub(super) fn read_within(path: &Path, file: &dyn ReadAt, limit: usize) -> Result<Metadata> {
    let mut reader = Reader {
        path,
        names: Names::default(),
        files: Names::default(),
        described: Vec::new(),
        places: Places::default(),
        n_chunk_bytes: 0,
        n_chunks: 0,
        n_left: LOOKED_AT,
        limit,
        failed: None,
    };
    let pickle = torch::read_pickle(path, "the metadata", file, &mut reader);
    // The reader's own fault says more than where the pickle ended.
    if let Some(failed) = reader.failed.take() {
        return Err(failed);
    }
    reader.finish(pickle?.view())
}

/// Reads bytes as the metadata of a distributed checkpoint, as the fuzz target does; gives the number of pieces.
///
/// # Errors
/// As for a file.
#[doc(hidden)]
pub fn walk_distributed(bytes: Vec<u8>) -> Result<usize> {
    let metadata = read(Path::new("(memory)"), &bytes)?;
    Ok(metadata.tensors.iter().map(|tensor| tensor.chunks.n).sum())
}

/// A tensor as it is described, before its name is known.
type Described = std::result::Result<(TensorInfo, Chunks), Unfit>;

/// Why a tensor cannot be read.
#[derive(Clone)]
enum Unfit {
    Fault(PickleFault),
    /// Its dtype or layout has no counterpart here.
    Kind(String),
    TooLarge(Vec<usize>),
}

impl From<PickleFault> for Unfit {
    fn from(fault: PickleFault) -> Self {
        Self::Fault(fault)
    }
}

struct Reader<'p> {
    path: &'p Path,
    names: Names,
    files: Names,
    described: Vec<Described>,
    places: Places,
    n_chunk_bytes: usize,
    n_chunks: usize,
    /// Pieces that may still be looked at.
    n_left: usize,
    /// The most memory.
    limit: usize,
    /// The first fault of the values taken out of the pickle.
    failed: Option<Error>,
}

impl Taker for Reader<'_> {
    fn object(&mut self, object: View<'_>) -> std::result::Result<Option<u32>, PickleFault> {
        let is_tensor = (object.class()).is_ok_and(|class| &*class.name == TENSOR);
        if !is_tensor || self.failed.is_some() {
            return Ok(None);
        }
        let described = self.tensor(object);
        self.described.push(described);
        self.require_memory();
        Ok(Some(self.described.len() as u32 - 1))
    }

    fn item(&mut self, key: View<'_>, value: View<'_>) -> std::result::Result<bool, PickleFault> {
        let is_index = (key.class()).is_ok_and(|class| &*class.name == "MetadataIndex");
        if !is_index {
            return Ok(false);
        }
        if self.failed.is_none() {
            match self.place(key, value) {
                Ok(()) => self.require_memory(),
                Err(failed) => self.failed = Some(failed),
            }
        }
        Ok(true)
    }
}

impl Reader<'_> {
    /// The error of a fault in the entry of a tensor, or of the file as a whole.
    fn fault(&self, key: Option<&str>, fault: PickleFault) -> Error {
        TrainerFault::Metadata {
            path: self.path.into(),
            key: key.map(str::to_owned),
            fault,
        }
        .into()
    }

    /// Refuses more than the granted number.
    fn require_memory(&mut self) {
        let n_bytes = self.n_chunk_bytes
            + self.places.n_bytes()
            + self.names.n_bytes
            + self.files.n_bytes
            + self.described.len() * 2 * size_of::<Described>();
        if n_bytes > self.limit && self.failed.is_none() {
            let fault = TrainerFault::ManyPieces {
                path: self.path.into(),
                n_tensors: self.described.len(),
                n_pieces: self.n_chunks.max(self.places.len()),
                limit: self.limit,
            };
            self.failed = Some(fault.into());
        }
    }

    /// A tensor and its pieces.
    fn tensor(&mut self, described: View<'_>) -> Described {
        let (dtype, layout) = properties_of(described.attribute("properties")?)?;
        // How a layout is spelled: the name as the argument of a function.
        let layout = layout.map(|layout| layout.argument(0).and_then(View::text));
        if let Some(layout) = layout.transpose()?
            && layout != "torch.strided"
        {
            return Err(Unfit::Kind(layout.to_owned()));
        }
        let dtype = dtype.global()?;
        let Some(ElementType::Plain(dtype)) = ElementType::of_dtype(dtype) else {
            return Err(Unfit::Kind(dtype.full_name()));
        };
        let shape = described.attribute("size").and_then(View::sizes)?;
        let info = info_of(dtype, &shape).ok_or(Unfit::TooLarge(shape))?;
        let (mut bytes, mut n, mut seen) = (Vec::new(), 0, HashSet::new());
        for listed in described.attribute("chunks")?.elements()? {
            self.n_left = self.n_left.checked_sub(1).ok_or(TOO_MANY)?;
            let mut chunk = Vec::new();
            for name in ["offsets", "sizes"] {
                let numbers = listed.attribute(name).and_then(View::sizes)?;
                put_varint(numbers.len() as u64, &mut chunk);
                (numbers.iter()).for_each(|number| put_varint(*number as u64, &mut chunk));
            }
            // Not a copy that another process has, too.
            if !seen.contains(&chunk) {
                bytes.extend_from_slice(&chunk);
                n += 1;
                seen.insert(chunk);
            }
        }
        self.n_chunks += n;
        self.n_chunk_bytes += bytes.len() + 64 + 8 * info.shape.len();
        let bytes = bytes.into();
        Ok((info, Chunks { bytes, n }))
    }

    /// Where a piece is.
    fn place(&mut self, index: View<'_>, stored: View<'_>) -> Result<()> {
        let key = index.attribute("fqn").and_then(View::text);
        let key = key.map_err(|fault| self.fault(None, fault))?;
        // Values that are no tensors begin nowhere.
        let Some(offset) = index.find("offset").filter(|offset| !offset.is_none()) else {
            return Ok(());
        };
        let at_key = |fault| self.fault(Some(key), fault);
        let start = offset.sizes().map_err(at_key)?;
        let number = |name| stored.attribute(name).and_then(View::count).map_err(at_key);
        let file = (stored.attribute("relative_path").and_then(View::text)).map_err(at_key)?;
        let (at, n_bytes) = (number("offset")?, number("length")?);
        let transforms = stored.find("transform_descriptors");
        if let Some(transforms) = transforms.filter(|transforms| !transforms.is_none()) {
            let names = transforms.elements().map(|names| {
                let names: Vec<&str> = names.take(8).filter_map(|name| name.text().ok()).collect();
                names.join(", ")
            });
            if names.as_ref().map_or(true, |names| !names.is_empty()) {
                return Err(TrainerFault::Transformed {
                    path: self.path.into(),
                    key: key.to_owned(),
                    file: file.to_owned(),
                    transforms: names.unwrap_or_default(),
                }
                .into());
            }
        }
        let (name, file) = (self.names.number(key), self.files.number(file));
        self.places.push(name, &start, file, at, n_bytes);
        Ok(())
    }

    /// The checkpoint, made of the taken values and the others.
    fn finish(mut self, root: View<'_>) -> Result<Metadata> {
        let mut paths = Paths::of(root).map_err(|fault| self.fault(None, fault))?;
        let described = (root.attribute("state_dict_metadata")).and_then(View::items);
        let described = described.map_err(|fault| self.fault(None, fault))?;
        let (mut tensors, mut values, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
        for (key, stored) in described {
            let key = key.text().map_err(|fault| self.fault(None, fault))?;
            if !keys.insert(key) {
                return Err(Error::DuplicateKey {
                    path: self.path.into(),
                    key: key.to_owned(),
                });
            }
            let path = paths.path_of(key);
            let path = path.map_err(|fault| self.fault(Some(key), fault))?;
            let Some(number) = stored.taken() else {
                let class = stored.class();
                let class = class.map_err(|fault| self.fault(Some(key), fault))?;
                match &*class.name {
                    "BytesStorageMetadata" => values.push(path),
                    TENSOR => {
                        let name = "properties";
                        return Err(self.fault(Some(key), PickleFault::NoAttribute { name }));
                    }
                    _ => return Err(self.unfit(key, Unfit::Kind(class.full_name()))),
                }
                continue;
            };
            // A description may be referred to again.
            let described = self.described[number as usize].clone();
            let described = described.and_then(|(info, chunks)| {
                self.n_left = (self.n_left.checked_sub(chunks.n)).ok_or(TOO_MANY)?;
                Ok((info, chunks))
            });
            let (info, chunks) = described.map_err(|unfit| self.unfit(key, unfit))?;
            tensors.push(Stored {
                name: self.names.number(key),
                path,
                info,
                chunks,
            });
        }
        Ok(Metadata {
            tensors,
            values,
            files: self.files,
            names: self.names,
            places: self.places,
        })
    }

    fn unfit(&self, key: &str, unfit: Unfit) -> Error {
        let (path, key) = (self.path.to_path_buf(), key.to_owned());
        match unfit {
            Unfit::Fault(fault) => self.fault(Some(&key), fault),
            Unfit::Kind(kind) => TrainerFault::Kind { path, key, kind }.into(),
            Unfit::TooLarge(shape) => TrainerFault::TooLarge { path, key, shape }.into(),
        }
    }
}

/// The paths of the flattened names, where they are recorded.
struct Paths<'a> {
    recorded: HashMap<&'a str, View<'a>>,
    n_bytes: usize,
}

impl<'a> Paths<'a> {
    fn of(root: View<'a>) -> std::result::Result<Self, PickleFault> {
        let recorded = root.find("planner_data");
        let recorded = recorded.filter(|recorded| !recorded.is_none());
        // A planner of a user's own may record anything.
        let items = recorded.and_then(|recorded| recorded.items().ok());
        let items = (items.into_iter().flatten()).map(|(key, path)| Ok((key.text()?, path)));
        Ok(Self {
            recorded: items.collect::<std::result::Result<_, PickleFault>>()?,
            n_bytes: 0,
        })
    }

    /// Where a tensor or value stands in the object that was saved.
    fn path_of(&mut self, key: &str) -> std::result::Result<ObjectPath, PickleFault> {
        let Some(recorded) = self.recorded.get(key) else {
            return Ok(ObjectPath(vec![PathSegment::Key(key.to_owned())]));
        };
        let mut segments = Vec::new();
        for segment in recorded.elements()? {
            let segment = match segment.text() {
                Ok(text) => PathSegment::Key(text.to_owned()),
                Err(_) => PathSegment::Index(segment.integer()?),
            };
            self.n_bytes += match &segment {
                PathSegment::Key(key) => 48 + key.len(),
                PathSegment::Index(_) => 32,
            };
            if self.n_bytes > PATH_LIMIT_BYTES {
                return Err(PickleFault::TooMuchMemory {
                    limit: PATH_LIMIT_BYTES as u64,
                });
            }
            segments.push(segment);
        }
        Ok(ObjectPath(segments))
    }
}

/// The dtype and the layout: attributes by name, or a tuple that begins with them.
fn properties_of(
    properties: View<'_>,
) -> std::result::Result<(View<'_>, Option<View<'_>>), PickleFault> {
    if let Some(dtype) = properties.find("dtype") {
        return Ok((dtype, properties.find("layout")));
    }
    let mut parts = properties.state()?.elements()?;
    let dtype = parts
        .next()
        .ok_or(PickleFault::NoAttribute { name: "dtype" })?;
    Ok((dtype, parts.next()))
}
