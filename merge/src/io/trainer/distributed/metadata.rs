//! What `.metadata` says: tensors, their pieces, and the place of each.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::io::read_at::ReadAt;
use crate::io::torch::{self, ElementType, PickleFault, View};
use crate::io::trainer::info_of;
use crate::io::{ObjectPath, PathSegment, TensorInfo};
use crate::{Error, Result, TrainerFault};

/// Pieces that are looked at beyond those that have places, each as often as it is referred to: replicas that older
/// versions list, and empty ones.
const MORE_PIECES: usize = 1 << 16;

/// Memory for the paths of tensors and values.
const PATH_LIMIT_BYTES: usize = 128 << 20;

/// What a checkpoint consists of.
pub(super) struct Metadata {
    pub(super) tensors: Vec<Stored>,
    /// Where values stand that are no tensors.
    pub(super) values: Vec<ObjectPath>,
    /// The files, as they are named.
    pub(super) files: Vec<String>,
}

/// A tensor in pieces.
pub(super) struct Stored {
    /// Its flattened name.
    pub(super) key: String,
    pub(super) path: ObjectPath,
    pub(super) info: TensorInfo,
    pub(super) chunks: Vec<Chunk>,
}

/// A piece of a tensor.
pub(super) struct Chunk {
    pub(super) start: Vec<usize>,
    pub(super) size: Vec<usize>,
    /// Where it is; `None` for one without elements.
    pub(super) place: Option<Place>,
}

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index into [`Metadata::files`].
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) n_bytes: u64,
}

/// A place as it is listed, and what was done to the bytes.
struct Listed<'a> {
    place: Place,
    transforms: Option<View<'a>>,
}

/// Reads the file.
pub(super) fn read(path: &Path, file: &dyn ReadAt) -> Result<Metadata> {
    let pickle = torch::read_pickle(path, "the metadata", file)?;
    parse(path, pickle.view())
}

/// Reads bytes as the metadata of a distributed checkpoint, as the fuzz target does; gives the number of pieces.
///
/// # Errors
/// As for a file.
#[doc(hidden)]
pub fn walk_distributed(bytes: Vec<u8>) -> Result<usize> {
    let metadata = read(Path::new("(memory)"), &bytes)?;
    Ok(metadata
        .tensors
        .iter()
        .map(|tensor| tensor.chunks.len())
        .sum())
}

/// A fault of the file as a whole.
fn damaged(path: &Path) -> impl Fn(PickleFault) -> Error {
    |fault| {
        Error::from(TrainerFault::Metadata {
            path: path.into(),
            key: None,
            fault,
        })
    }
}

fn parse(path: &Path, root: View<'_>) -> Result<Metadata> {
    let failed = damaged(path);
    let mut files = Files::default();
    let places = places(path, root, &mut files)?;
    let paths = paths(root).map_err(&failed)?;
    let mut reader = Reader {
        path,
        n_left: places.len().saturating_mul(4).saturating_add(MORE_PIECES),
        path_bytes: 0,
        places,
        paths,
    };
    let described = root.attribute("state_dict_metadata").map_err(&failed)?;
    let (mut tensors, mut values, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
    for (key, described) in described.items().map_err(&failed)? {
        let key = key.text().map_err(&failed)?;
        if !keys.insert(key) {
            return Err(Error::DuplicateKey {
                path: path.into(),
                key: key.to_owned(),
            });
        }
        let at_key = |fault| {
            Error::from(TrainerFault::Metadata {
                path: path.into(),
                key: Some(key.to_owned()),
                fault,
            })
        };
        let class = described.class().map_err(at_key)?;
        match &*class.name {
            "TensorStorageMetadata" => tensors.push(reader.tensor(key, described)?),
            "BytesStorageMetadata" => values.push(reader.path_of(key).map_err(at_key)?),
            _ => {
                return Err(TrainerFault::Kind {
                    path: path.into(),
                    key: key.to_owned(),
                    kind: class.full_name(),
                }
                .into());
            }
        }
    }
    Ok(Metadata {
        tensors,
        values,
        files: files.names,
    })
}

/// Names of files, each once.
#[derive(Default)]
struct Files<'a> {
    names: Vec<String>,
    numbers: HashMap<&'a str, usize>,
}

impl<'a> Files<'a> {
    fn number(&mut self, name: &'a str) -> usize {
        *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }
}

/// Where the pieces are, by the tensor and where the piece begins in it.
type Places<'a> = HashMap<(&'a str, Vec<usize>), Listed<'a>>;

fn places<'a>(path: &Path, root: View<'a>, files: &mut Files<'a>) -> Result<Places<'a>> {
    let failed = damaged(path);
    let listed = root.attribute("storage_data").map_err(&failed)?;
    let mut places = Places::new();
    for (index, stored) in listed.items().map_err(&failed)? {
        let key = (index.attribute("fqn").and_then(View::text)).map_err(&failed)?;
        let at_key = |fault| {
            Error::from(TrainerFault::Metadata {
                path: path.into(),
                key: Some(key.to_owned()),
                fault,
            })
        };
        // Values that are no tensors begin nowhere.
        let Some(offset) = index.find("offset").filter(|offset| !offset.is_none()) else {
            continue;
        };
        let start = offset.sizes().map_err(at_key)?;
        let number = |name| stored.attribute(name).and_then(View::count).map_err(at_key);
        let file = (stored.attribute("relative_path").and_then(View::text)).map_err(at_key)?;
        let place = Place {
            file: files.number(file),
            offset: number("offset")?,
            n_bytes: number("length")?,
        };
        let transforms = stored.find("transform_descriptors");
        let transforms = transforms.filter(|transforms| !transforms.is_none());
        let known = places.insert((key, start.clone()), Listed { place, transforms });
        if known.is_some_and(|known| known.place != place) {
            return Err(TrainerFault::TwoPlaces {
                path: path.into(),
                key: key.to_owned(),
                start,
            }
            .into());
        }
    }
    Ok(places)
}

/// The paths of the flattened names, where they are recorded.
fn paths(root: View<'_>) -> std::result::Result<HashMap<&str, View<'_>>, PickleFault> {
    let Some(recorded) = root
        .find("planner_data")
        .filter(|recorded| !recorded.is_none())
    else {
        return Ok(HashMap::new());
    };
    // A planner of a user's own may record anything.
    let Ok(items) = recorded.items() else {
        return Ok(HashMap::new());
    };
    items.map(|(key, path)| Ok((key.text()?, path))).collect()
}

struct Reader<'a> {
    path: &'a Path,
    places: Places<'a>,
    paths: HashMap<&'a str, View<'a>>,
    /// Pieces that may still be looked at.
    n_left: usize,
    path_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Where a tensor or value stands in the object that was saved.
    fn path_of(&mut self, key: &str) -> std::result::Result<ObjectPath, PickleFault> {
        let segments = match self.paths.get(key) {
            None => vec![PathSegment::Key(key.to_owned())],
            Some(recorded) => {
                let mut segments = Vec::new();
                for segment in recorded.elements()? {
                    let segment = match segment.text() {
                        Ok(text) => PathSegment::Key(text.to_owned()),
                        Err(_) => PathSegment::Index(segment.integer()?),
                    };
                    self.path_bytes += match &segment {
                        PathSegment::Key(key) => 48 + key.len(),
                        PathSegment::Index(_) => 32,
                    };
                    if self.path_bytes > PATH_LIMIT_BYTES {
                        return Err(PickleFault::TooMuchMemory {
                            limit: PATH_LIMIT_BYTES as u64,
                        });
                    }
                    segments.push(segment);
                }
                segments
            }
        };
        Ok(ObjectPath(segments))
    }

    fn tensor(&mut self, key: &'a str, described: View<'a>) -> Result<Stored> {
        let path = self.path;
        let at_key = |fault| {
            Error::from(TrainerFault::Metadata {
                path: path.into(),
                key: Some(key.to_owned()),
                fault,
            })
        };
        let kind = |kind: String| {
            Error::from(TrainerFault::Kind {
                path: path.into(),
                key: key.to_owned(),
                kind,
            })
        };
        let properties = described.attribute("properties").map_err(at_key)?;
        let (dtype, layout) = properties_of(properties).map_err(at_key)?;
        // How a layout is spelled: the name as the argument of a function.
        let layout = layout.map(|layout| layout.argument(0).and_then(View::text));
        if let Some(layout) = layout.transpose().map_err(at_key)?
            && layout != "torch.strided"
        {
            return Err(kind(layout.to_owned()));
        }
        let dtype = dtype.global().map_err(at_key)?;
        let Some(ElementType::Plain(dtype)) = ElementType::of_dtype(dtype) else {
            return Err(kind(dtype.full_name()));
        };
        let shape = (described.attribute("size").and_then(View::sizes)).map_err(at_key)?;
        let info = info_of(dtype, &shape).ok_or_else(|| TrainerFault::TooLarge {
            path: path.into(),
            key: key.to_owned(),
            shape: shape.clone(),
        })?;
        let (mut chunks, mut seen) = (Vec::new(), HashSet::new());
        let listed = described.attribute("chunks").map_err(at_key)?;
        for listed in listed.elements().map_err(at_key)? {
            self.n_left = self.n_left.checked_sub(1).ok_or_else(|| {
                at_key(PickleFault::TooManyObjects {
                    limit: (self.places.len() * 4 + MORE_PIECES) as u64,
                })
            })?;
            let sizes = |name| listed.attribute(name).and_then(View::sizes).map_err(at_key);
            let (start, size) = (sizes("offsets")?, sizes("sizes")?);
            // A copy that another process has, too.
            if !seen.insert((start.clone(), size.clone())) {
                continue;
            }
            let place = match size.contains(&0) {
                true => None,
                false => Some(self.place(key, &start)?),
            };
            chunks.push(Chunk { start, size, place });
        }
        Ok(Stored {
            key: key.to_owned(),
            path: self.path_of(key).map_err(at_key)?,
            info,
            chunks,
        })
    }

    fn place(&self, key: &'a str, start: &[usize]) -> Result<Place> {
        let Some(listed) = self.places.get(&(key, start.to_vec())) else {
            return Err(TrainerFault::NoPlace {
                path: self.path.into(),
                key: key.to_owned(),
                start: start.to_vec(),
            }
            .into());
        };
        let Some(transforms) = listed.transforms else {
            return Ok(listed.place);
        };
        let names = transforms.elements().map(|names| {
            let names: Vec<&str> = names.take(8).filter_map(|name| name.text().ok()).collect();
            names.join(", ")
        });
        match names {
            Ok(names) if names.is_empty() => Ok(listed.place),
            names => Err(TrainerFault::Transformed {
                path: self.path.into(),
                key: key.to_owned(),
                file: format!("file {}", listed.place.file),
                transforms: names.unwrap_or_default(),
            }
            .into()),
        }
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
