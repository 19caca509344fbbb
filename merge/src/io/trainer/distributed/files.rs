//! The files of a distributed checkpoint, whose tensors are the pieces in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::metadata::{Metadata, Place};
use crate::io::read_at::ReadAt;
use crate::io::trainer::inside;
use crate::io::trainer::pool::{Pool, PooledFile, Window};
use crate::io::{
    Container, ObjectPath, OpenOptions, SourceFile, SourceInfo, TensorEntry, TensorInfo,
    TensorSource, torch,
};
use crate::{Result, TrainerFault};

/// Pieces of a model that are looked at as it is opened. Those of a model with more are looked at as they are read, for
/// each costs a read or two of its own.
const LOOKED_AT: usize = 1 << 14;

/// The number of a file and of a piece in it.
type Item = (usize, usize);

/// For each piece of each tensor where it is; `None` for one without elements.
type Items = Vec<Vec<Option<Item>>>;

/// Opens all files and gives, for each piece of each tensor, the file and the number in it.
///
/// # Errors
/// [`TrainerFault`] for places beyond a file, too small or shared, and for pieces that are something else.
pub(super) fn open(
    folder: &Path,
    pool: &Arc<Pool>,
    metadata: &Metadata,
    entries: &[TensorEntry],
) -> Result<(Vec<Box<dyn TensorSource>>, Items)> {
    let mut files = Vec::new();
    for name in &metadata.files {
        files.push(PieceFile::open(&inside(folder, name)?, pool)?);
    }
    let mut items = Items::new();
    let mut wanted = Vec::new();
    for (tensor, entry) in metadata.tensors.iter().zip(entries) {
        let places = tensor.chunks.iter().map(|chunk| {
            let Some(place) = chunk.place else {
                return Ok(None);
            };
            let info = TensorInfo {
                dtype: tensor.info.dtype,
                shape: chunk.size.clone(),
            };
            let number = files[place.file].add(&tensor.key, place, info)?;
            if entry.name.is_some() {
                wanted.push((place.file, number));
            }
            Ok(Some((place.file, number)))
        });
        items.push(places.collect::<Result<_>>()?);
    }
    for file in &files {
        file.require_apart()?;
    }
    if wanted.len() <= LOOKED_AT {
        (wanted.par_iter()).try_for_each(|(file, number)| files[*file].piece(*number).map(drop))?;
    }
    let files = files.into_iter().map(|file| Box::new(file) as _).collect();
    Ok((files, items))
}

/// A file of pieces.
struct PieceFile {
    info: SourceInfo,
    file: PooledFile,
    entries: Vec<TensorEntry>,
    places: Vec<Place>,
    keys: Vec<Arc<str>>,
    /// The pieces that were looked at.
    opened: Vec<OnceLock<Box<dyn TensorSource>>>,
}

impl PieceFile {
    fn open(path: &Path, pool: &Arc<Pool>) -> Result<Self> {
        let file = pool.open(path)?;
        Ok(Self {
            info: SourceInfo {
                path: path.into(),
                container: Container::Distributed,
                files: vec![SourceFile::of(path, &file)],
                metadata: BTreeMap::new(),
                roots: Vec::new(),
                root: String::new(),
                values: Vec::new(),
                opaque: Vec::new(),
            },
            file,
            entries: Vec::new(),
            places: Vec::new(),
            keys: Vec::new(),
            opened: Vec::new(),
        })
    }

    /// Adds a piece and gives its number. A piece of more bytes than its place has, or of a shape whose size does not
    /// fit memory, is refused.
    fn add(&mut self, key: &str, place: Place, info: TensorInfo) -> Result<usize> {
        let end = place.offset.checked_add(place.n_bytes);
        let n_bytes = super::super::info_of(info.dtype, &info.shape).map(|info| info.n_bytes());
        let is_inside = end.is_some_and(|end| end <= self.file.n_bytes())
            && n_bytes.is_some_and(|n_bytes| n_bytes <= place.n_bytes);
        if !is_inside {
            return Err(TrainerFault::PlaceOutside {
                path: self.info.path.clone(),
                key: key.to_owned(),
                n_bytes: n_bytes.unwrap_or(u64::MAX),
                start: place.offset,
                end: end.unwrap_or(u64::MAX),
                file_bytes: self.file.n_bytes(),
            }
            .into());
        }
        self.entries.push(TensorEntry {
            path: ObjectPath::default(),
            name: None,
            info,
        });
        self.places.push(place);
        self.opened.push(OnceLock::new());
        match self.keys.last() {
            Some(last) if **last == *key => self.keys.push(last.clone()),
            _ => self.keys.push(key.into()),
        }
        Ok(self.keys.len() - 1)
    }

    /// Checks that no two pieces share bytes.
    fn require_apart(&self) -> Result<()> {
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        order.sort_unstable_by_key(|number| self.places[*number].offset);
        for pair in order.windows(2) {
            let [one, other] = [self.places[pair[0]], self.places[pair[1]]];
            if one.offset + one.n_bytes > other.offset {
                return Err(TrainerFault::SharedPlace {
                    path: self.info.path.clone(),
                    keys: [
                        self.keys[pair[0]].to_string(),
                        self.keys[pair[1]].to_string(),
                    ],
                    at: other.offset,
                }
                .into());
            }
        }
        Ok(())
    }

    /// The tensor at the place of a piece, which must be what the metadata say.
    fn piece(&self, number: usize) -> Result<&dyn TensorSource> {
        if let Some(opened) = self.opened[number].get() {
            return Ok(opened.as_ref());
        }
        let (place, path) = (self.places[number], &self.info.path);
        let window = Window::new(self.file.clone(), place.offset, place.n_bytes);
        let opened = torch::open(path, Box::new(window), &OpenOptions::default());
        let opened = opened.map_err(|source| TrainerFault::DamagedPiece {
            path: path.clone(),
            key: self.keys[number].to_string(),
            at: place.offset,
            source: Box::new(source),
        })?;
        let wanted = &self.entries[number].info;
        let found = match opened.tensors() {
            [entry] if entry.path.0.is_empty() && entry.info == *wanted => None,
            [entry] if entry.path.0.is_empty() => {
                Some(format!("{} {:?}", entry.info.dtype, entry.info.shape))
            }
            _ => Some("no single tensor".to_owned()),
        };
        if let Some(found) = found {
            return Err(TrainerFault::OtherPiece {
                path: path.clone(),
                key: self.keys[number].to_string(),
                at: place.offset,
                found,
                wanted: format!("{} {:?}", wanted.dtype, wanted.shape),
            }
            .into());
        }
        Ok(self.opened[number].get_or_init(|| opened).as_ref())
    }
}

impl TensorSource for PieceFile {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        self.piece(index)?.read(0, first, out)
    }
}
