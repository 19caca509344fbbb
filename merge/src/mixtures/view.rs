//! Checkpoints whose tensors are made of rows of others: experts in another order, together or apart, and units in
//! another order, and sums of experts. Values are changed by sums alone.

use std::sync::{Arc, Mutex, PoisonError};

use crate::io::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Error, Result, TensorInfo, TensorSource, decode_f64, encode_f64};

/// Consecutive rows of a tensor of the view: where they come from. A row is one step along the last axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// The tensor.
    pub key: String,
    /// The element of it that the first row begins with, where rows are in order.
    pub first: usize,
    /// The number of rows.
    pub n_rows: usize,
    /// The order of the rows, if it is another one: row `i` here is row `rows[i]` there.
    pub rows: Option<Arc<[u32]>>,
    /// The order within each row, likewise.
    pub columns: Option<Arc<[u32]>>,
    /// Elements of a row there, where `columns` takes fewer of them.
    pub row_elements: Option<usize>,
    /// In place of all that, the sum of pieces of the same size, each with a weight.
    pub sum: Vec<(f64, Self)>,
    /// Rows there are columns here: `(columns here, n_rows)` there, of which this reads `(n_rows, columns)`.
    pub is_transposed: bool,
}

impl Piece {
    /// Rows as they are.
    pub(crate) fn of(key: String, first: usize, n_rows: usize) -> Self {
        Self {
            key,
            first,
            n_rows,
            rows: None,
            columns: None,
            row_elements: None,
            sum: Vec::new(),
            is_transposed: false,
        }
    }

    /// The weighted sum of pieces of `n_rows` rows; the one itself of a single one that counts whole.
    pub(crate) fn sum_of(n_rows: usize, mut sum: Vec<(f64, Self)>) -> Self {
        match (sum.len(), sum.pop()) {
            (1, Some((weight, piece))) if (weight - 1.0).abs() < f64::EPSILON => piece,
            (_, last) => {
                sum.extend(last);
                let key = sum.first().map(|(_, piece)| piece.key.clone());
                Self {
                    sum,
                    ..Self::of(key.unwrap_or_default(), 0, n_rows)
                }
            }
        }
    }
}

/// The sources of a tensor of the view; a tensor that is not listed is that of the same name.
#[derive(Clone, Debug)]
pub(crate) struct Arrangement {
    /// Pieces one after the other.
    pub pieces: Vec<Piece>,
}

/// The source of rows, which may be found out only when they are read.
pub(crate) trait Arranger: Send + Sync {
    /// The sources of tensor `name`; `None` if it turns out to be its origin as it is.
    fn arrangement(&self, name: &str) -> Result<Option<Arc<Arrangement>>>;
}

/// A checkpoint made of rows of another.
pub(crate) struct Rearranged {
    inner: Arc<Checkpoint>,
    tensors: Vec<TensorEntry>,
    names: Vec<String>,
    aliases: Aliases,
    origins: Vec<Origin>,
    arranger: Box<dyn Arranger>,
    /// Matrices that were transposed last, for reads that go on in them.
    transposed: Mutex<Vec<Transposed>>,
}

/// A matrix that was transposed: the name of its tensor, its first row there, and its bytes.
type Transposed = (String, usize, Arc<[u8]>);

/// A tensor of a view.
pub(crate) struct ViewedTensor {
    /// Its name.
    pub name: String,
    /// Its shape and dtype.
    pub info: TensorInfo,
    /// The origin.
    pub origin: Origin,
}

/// The origin of a tensor of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is the tensor of this name.
    Same(String),
    /// It is made of pieces, of which one is of the tensor of this name.
    Made(String),
}

impl Origin {
    fn key(&self) -> &str {
        match self {
            Self::Same(key) | Self::Made(key) => key,
        }
    }
}

/// Transposed matrices that are kept.
const KEPT: usize = 2;

impl Rearranged {
    /// A view of `inner` with these tensors, those that are made of pieces as `arranger` says.
    pub(crate) fn view(
        inner: Arc<Checkpoint>,
        viewed: Vec<ViewedTensor>,
        aliases: Aliases,
        arranger: Box<dyn Arranger>,
    ) -> Arc<Checkpoint> {
        let mut view = Self {
            inner,
            tensors: Vec::with_capacity(viewed.len()),
            names: Vec::with_capacity(viewed.len()),
            aliases,
            origins: Vec::with_capacity(viewed.len()),
            arranger,
            transposed: Mutex::default(),
        };
        for tensor in viewed {
            let entry = TensorEntry::named(tensor.name.clone(), tensor.info);
            view.tensors.push(entry);
            view.names.push(tensor.name);
            view.origins.push(tensor.origin);
        }
        Arc::new(Checkpoint::new(Box::new(view)))
    }

    /// Reads `out` from row `row`, column `column` of a piece on, within the piece.
    fn read_piece(
        &self,
        piece: &Piece,
        (row, column): (usize, usize),
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let width = row_elements(info);
        let size = info.dtype.size_bytes();
        if !piece.sum.is_empty() {
            return self.read_sum(&piece.sum, (row, column), info, out);
        }
        if piece.is_transposed {
            let matrix = self.transposed(piece, width, size)?;
            let first = (row * width + column) * size;
            out.copy_from_slice(&matrix[first..first + out.len()]);
            return Ok(());
        }
        if piece.rows.is_none() && piece.columns.is_none() {
            let first = piece.first + row * width + column;
            return self.inner.read(&piece.key, first, out);
        }
        let there = piece.row_elements.unwrap_or(width);
        let mut whole = vec![0; there * size];
        let (mut row, mut column, mut rest) = (row, column, out);
        while !rest.is_empty() {
            let n = (width - column).min(rest.len() / size);
            let (part, after) = rest.split_at_mut(n * size);
            let from = piece.rows.as_ref().map_or(row, |rows| rows[row] as usize);
            let first = piece.first + from * there;
            match &piece.columns {
                None => self.inner.read(&piece.key, first + column, part)?,
                Some(columns) => {
                    self.inner.read(&piece.key, first, &mut whole)?;
                    let columns = &columns[column..column + n];
                    for (to, &from) in part.chunks_exact_mut(size).zip(columns) {
                        let from = from as usize * size;
                        to.copy_from_slice(&whole[from..from + size]);
                    }
                }
            }
            (row, column, rest) = (row + 1, 0, after);
        }
        Ok(())
    }

    /// Adds pieces up in f64.
    fn read_sum(
        &self,
        pieces: &[(f64, Piece)],
        at: (usize, usize),
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let mut sum = vec![0.0; out.len() / info.dtype.size_bytes()];
        let mut values = sum.clone();
        for (weight, piece) in pieces {
            self.read_piece(piece, at, info, out)?;
            decode_f64(&piece.key, info.dtype, out, &mut values)?;
            for (sum, value) in sum.iter_mut().zip(&values) {
                *sum += weight * value;
            }
        }
        let name = pieces.first().map_or("", |(_, piece)| piece.key.as_str());
        encode_f64(name, info.dtype, &sum, out)
    }

    /// A piece whose rows are columns there, as a whole.
    fn transposed(&self, piece: &Piece, width: usize, size: usize) -> Result<Arc<[u8]>> {
        let mut known = self
            .transposed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_it = |(key, first, _): &&(String, usize, Arc<[u8]>)| {
            *key == piece.key && *first == piece.first
        };
        if let Some((_, _, matrix)) = known.iter().find(is_it) {
            return Ok(Arc::clone(matrix));
        }
        let mut there = vec![0; width * piece.n_rows * size];
        self.inner.read(&piece.key, piece.first, &mut there)?;
        let mut here = vec![0; there.len()];
        for (column, line) in there.chunks_exact(piece.n_rows * size).enumerate() {
            for (row, element) in line.chunks_exact(size).enumerate() {
                let to = (row * width + column) * size;
                here[to..to + size].copy_from_slice(element);
            }
        }
        let matrix: Arc<[u8]> = here.into();
        if known.len() >= KEPT {
            known.remove(0);
        }
        known.push((piece.key.clone(), piece.first, Arc::clone(&matrix)));
        Ok(matrix)
    }
}

/// Elements of a row: of the last axis.
pub(super) fn row_elements(info: &TensorInfo) -> usize {
    info.shape.last().copied().unwrap_or(1).max(1)
}

impl TensorSource for Rearranged {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.inner.stored_dtype(self.origins[index].key());
        stored.unwrap_or(self.tensors[index].info.dtype)
    }

    fn is_computed(&self, index: usize) -> bool {
        match &self.origins[index] {
            Origin::Same(key) => self.inner.is_computed(key),
            Origin::Made(_) => true,
        }
    }

    fn held_bytes(&self) -> u64 {
        self.inner.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (origin, name) = (&self.origins[index], &self.names[index]);
        let arrangement = match origin {
            Origin::Made(_) => self.arranger.arrangement(name)?,
            Origin::Same(_) => None,
        };
        // Pieces that are in order already are none.
        let Some(arrangement) = arrangement else {
            return self.inner.read(origin.key(), first, out);
        };
        let info = &self.tensors[index].info;
        if info.dtype.bits() < 8 {
            return Err(Error::UnsupportedCast {
                key: name.clone(),
                dtype: info.dtype,
                wanted: DType::BF16,
            });
        }
        let (width, size) = (row_elements(info), info.dtype.size_bytes());
        let (mut at, mut rest, mut begin) = (first, out, 0);
        for piece in &arrangement.pieces {
            let end = begin + piece.n_rows * width;
            if !rest.is_empty() && at < end {
                let n = (end - at).min(rest.len() / size);
                let (part, after) = rest.split_at_mut(n * size);
                let within = at - begin;
                self.read_piece(piece, (within / width, within % width), info, part)?;
                (at, rest) = (at + n, after);
            }
            begin = end;
        }
        Ok(())
    }
}

/// Arrangements that are known from the start, by name.
impl Arranger for std::collections::BTreeMap<String, Arc<Arrangement>> {
    fn arrangement(&self, name: &str) -> Result<Option<Arc<Arrangement>>> {
        Ok(self.get(name).map(Arc::clone))
    }
}
