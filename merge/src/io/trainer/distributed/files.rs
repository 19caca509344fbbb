//! The files of a distributed checkpoint, in which the pieces lie.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::metadata::{Names, Stored};
use super::places::Places;
use crate::io::assembled::{Holder, Piece};
use crate::io::read_at::ReadAt;
use crate::io::trainer::pool::{Pool, PooledFile, Window};
use crate::io::trainer::{info_of, inside};
use crate::io::{OpenOptions, SourceFile, TensorSource, torch};
use crate::{DType, Error, Result, TrainerFault};

/// Pieces that are kept open.
const KEPT_OPEN: usize = 1 << 10;

/// A piece that was looked at: its row, and the tensor there.
type Opened = Mutex<Option<(u32, Arc<dyn TensorSource>)>>;

/// The pieces in all files. The number of a piece's tensor is that of the row of its place.
pub(super) struct Pieces {
    files: Vec<(PathBuf, PooledFile)>,
    places: Places,
    names: Names,
    /// The dtype of the tensor of each name.
    dtypes: Vec<DType>,
    /// The pieces that were looked at last, each where its row's number leads.
    opened: Vec<Opened>,
}

impl Pieces {
    /// Opens the files that are named, and compares the places with them.
    ///
    /// # Errors
    /// [`TrainerFault`] for places beyond a file or shared, and for a piece with two.
    pub(super) fn open(
        metadata_path: &Path,
        folder: &Path,
        pool: &Arc<Pool>,
        files: &Names,
        (names, mut places): (Names, Places),
        tensors: &[Stored],
    ) -> Result<Self> {
        let files = files.iter().map(|name| {
            let path = inside(folder, name)?;
            let file = pool.open(&path)?;
            Ok((path, file))
        });
        let shared = places.order_by_file();
        let shared = shared.map(|rows| rows.map(|row| places.place(row)));
        let mut dtypes = vec![DType::U8; names.iter().len()];
        for tensor in tensors {
            dtypes[tensor.name as usize] = tensor.info.dtype;
        }
        let twice = places.order_by_tensor();
        let pieces = Self {
            files: files.collect::<Result<_>>()?,
            places,
            names,
            dtypes,
            opened: (0..KEPT_OPEN).map(|_| Mutex::new(None)).collect(),
        };
        if let Some(row) = twice {
            return Err(TrainerFault::TwoPlaces {
                path: metadata_path.into(),
                key: pieces.key(pieces.places.place(row).name),
                start: pieces.places.start(row).collect(),
            }
            .into());
        }
        for row in pieces.places.rows() {
            pieces.require_inside(*row, Some(0))?;
        }
        match shared {
            None => Ok(pieces),
            Some([one, other]) => Err(TrainerFault::SharedPlace {
                path: pieces.files[one.file as usize].0.clone(),
                keys: [one, other].map(|place| pieces.key(place.name)),
                at: other.offset,
            }
            .into()),
        }
    }

    /// The files.
    pub(super) fn source_files(&self) -> impl Iterator<Item = SourceFile> {
        (self.files.iter()).map(|(path, file)| SourceFile::of(path, file))
    }

    fn key(&self, name: u32) -> String {
        self.names.get(name).to_string()
    }

    /// Checks that a place is within its file and has room for a piece of this number of bytes; `None` for more than any memory.
    fn require_inside(&self, row: u32, n_bytes: Option<u64>) -> Result<()> {
        let place = self.places.place(row);
        let (path, file) = &self.files[place.file as usize];
        let end = place.offset.checked_add(place.n_bytes);
        let is_inside = end.is_some_and(|end| end <= file.n_bytes())
            && n_bytes.is_some_and(|n_bytes| n_bytes <= place.n_bytes);
        match is_inside {
            true => Ok(()),
            false => Err(TrainerFault::PlaceOutside {
                path: path.clone(),
                key: self.key(place.name),
                n_bytes: n_bytes.unwrap_or(u64::MAX),
                start: place.offset,
                end: end.unwrap_or(u64::MAX),
                file_bytes: file.n_bytes(),
            }
            .into()),
        }
    }

    /// The pieces of a tensor that have elements, each with its place. A place of fewer bytes than its piece, or a piece
    /// whose size does not fit memory, is refused.
    pub(super) fn of(&self, metadata_path: &Path, tensor: &Stored) -> Result<Vec<Piece>> {
        let rows = self.places.of_tensor(tensor.name);
        let with_elements = (tensor.chunks.iter()).filter(|(_, size)| !size.contains(&0));
        let pieces = with_elements.map(|(start, size)| {
            let row = self.places.find(rows.clone(), &start);
            let row = row.ok_or_else(|| TrainerFault::NoPlace {
                path: metadata_path.into(),
                key: self.key(tensor.name),
                start: start.clone(),
            })?;
            let n_bytes = info_of(tensor.info.dtype, &size).map(|info| info.n_bytes());
            self.require_inside(row, n_bytes)?;
            let shape = &tensor.info.shape;
            Ok(Piece::whole(0, row as usize, &size, shape, &start))
        });
        pieces.collect()
    }

    /// The tensor at the place of a piece, which must be what the metadata say.
    pub(super) fn opened(&self, row: u32, size: &[usize]) -> Result<Arc<dyn TensorSource>> {
        let slot = &self.opened[row as usize % KEPT_OPEN];
        let known = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = known().as_ref().filter(|(known, _)| *known == row) {
            return Ok(opened.clone());
        }
        let opened: Arc<dyn TensorSource> = Arc::from(self.look_at(row, size)?);
        *known() = Some((row, opened.clone()));
        Ok(opened)
    }

    fn look_at(&self, row: u32, size: &[usize]) -> Result<Box<dyn TensorSource>> {
        let place = self.places.place(row);
        let (path, file) = &self.files[place.file as usize];
        let window = Window::new(file.clone(), place.offset, place.n_bytes);
        let opened = torch::open(path, Box::new(window), &OpenOptions::default());
        let opened = opened.map_err(|source| TrainerFault::DamagedPiece {
            path: path.clone(),
            key: self.key(place.name),
            at: place.offset,
            source: Box::new(source),
        })?;
        let dtype = self.dtypes[place.name as usize];
        let found = match opened.tensors() {
            [entry] if entry.path.0.is_empty() => {
                let info = &entry.info;
                let is_wanted = info.dtype == dtype && info.shape == size;
                (!is_wanted).then(|| format!("{} {:?}", info.dtype, info.shape))
            }
            _ => Some("no single tensor".to_owned()),
        };
        match found {
            None => Ok(opened),
            Some(found) => Err(Error::from(TrainerFault::OtherPiece {
                path: path.clone(),
                key: self.key(place.name),
                at: place.offset,
                found,
                wanted: format!("{dtype} {size:?}"),
            })),
        }
    }
}

impl Holder for Arc<Pieces> {
    fn path(&self, piece: &Piece) -> PathBuf {
        let place = self.places.place(piece.tensor as u32);
        self.files[place.file as usize].0.clone()
    }

    fn held(&self, piece: &Piece) -> (DType, usize) {
        // The tensor at the place is compared with the size of the piece when it is looked at.
        let n_elements = (piece.size.iter()).try_fold(1usize, |n, size| n.checked_mul(*size));
        (self.stored_dtype(piece), n_elements.unwrap_or(usize::MAX))
    }

    fn stored_dtype(&self, piece: &Piece) -> DType {
        self.dtypes[self.places.place(piece.tensor as u32).name as usize]
    }

    fn is_computed(&self, _: &Piece) -> bool {
        false
    }

    fn read(&self, piece: &Piece, first: usize, out: &mut [u8]) -> Result<()> {
        self.opened(piece.tensor as u32, &piece.size)?
            .read(0, first, out)
    }
}
