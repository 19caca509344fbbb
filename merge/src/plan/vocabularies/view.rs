//! Checkpoints whose embeddings have their rows in another order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::io::{Aliases, SourceInfo, TensorEntry};
use crate::plan::checkpoints::Models;
use crate::{Checkpoint, DType, Result, TensorInfo, TensorSource, decode_f64, encode_f64};

/// The origin of a row of a rearranged tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// A row of a source.
    Of { source: usize, row: usize },
    /// The mean of rows of several sources.
    Mean(Vec<(usize, usize)>),
    /// The mean of the first rows of the tensor, this many, as they are now.
    MeanOfFirst(usize),
    /// No model has the token.
    Zero,
}

/// Puts views in place of the sources of which some tensors have other rows.
pub(super) fn view_rows(
    models: &mut Models,
    originals: &[Arc<Checkpoint>],
    rows: Vec<BTreeMap<String, Arc<[Row]>>>,
) {
    for (index, rows) in rows.into_iter().enumerate() {
        if !rows.is_empty() {
            let view = ByToken::new(index, originals, rows);
            models.sources[index] = Arc::new(Checkpoint::new(Box::new(view)));
        }
    }
}

/// A checkpoint with some of its tensors rearranged row by row.
struct ByToken {
    own: usize,
    /// All models, any of which may give a row.
    all: Vec<Arc<Checkpoint>>,
    tensors: Vec<TensorEntry>,
    names: Vec<String>,
    rows: Vec<Option<Arc<[Row]>>>,
    /// Means of rows that were computed, by tensor.
    means: Mutex<BTreeMap<usize, Arc<[f64]>>>,
}

impl ByToken {
    fn new(own: usize, all: &[Arc<Checkpoint>], of: BTreeMap<String, Arc<[Row]>>) -> Self {
        let mut view = Self {
            own,
            all: all.to_vec(),
            tensors: Vec::new(),
            names: Vec::new(),
            rows: Vec::new(),
            means: Mutex::default(),
        };
        for (name, info) in all[own].tensors() {
            let rows = of.get(name).cloned();
            let mut info = info.clone();
            if let (Some(rows), Some(size)) = (&rows, info.shape.first_mut()) {
                *size = rows.len();
            }
            view.tensors.push(TensorEntry::named(name.to_owned(), info));
            view.names.push(name.to_owned());
            view.rows.push(rows);
        }
        view
    }

    /// Elements `first..` of a source's tensor, in the dtype of `info`.
    fn copy(
        &self,
        (source, name): (usize, &str),
        first: usize,
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let source = &self.all[source];
        let stored = source.require(name)?.dtype;
        if stored == info.dtype {
            return source.read(name, first, out);
        }
        let mut values = vec![0.0; out.len() / info.dtype.size_bytes()];
        let mut bytes = vec![0; values.len() * stored.size_bytes()];
        source.read(name, first, &mut bytes)?;
        decode_f64(name, stored, &bytes, &mut values)?;
        encode_f64(name, info.dtype, &values, out)
    }

    /// The mean of elements of rows.
    fn mean(
        &self,
        name: &str,
        of: &[(usize, usize)],
        within: usize,
        info: &TensorInfo,
        out: &mut [u8],
    ) -> Result<()> {
        let width = row_elements(info);
        let mut sum = vec![0.0; out.len() / info.dtype.size_bytes()];
        let mut values = sum.clone();
        for &(source, row) in of {
            let source = &self.all[source];
            let stored = source.require(name)?.dtype;
            let mut bytes = vec![0; values.len() * stored.size_bytes()];
            source.read(name, row * width + within, &mut bytes)?;
            decode_f64(name, stored, &bytes, &mut values)?;
            for (sum, value) in sum.iter_mut().zip(&values) {
                *sum += value;
            }
        }
        for sum in &mut sum {
            *sum /= of.len() as f64;
        }
        encode_f64(name, info.dtype, &sum, out)
    }

    /// The mean of the first rows of a tensor, which the view itself reads.
    fn mean_of_first(&self, index: usize, n_rows: usize) -> Result<Arc<[f64]>> {
        let known = || self.means.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mean) = known().get(&index) {
            return Ok(Arc::clone(mean));
        }
        let info = &self.tensors[index].info;
        let width = row_elements(info);
        let mut sum = vec![0.0; width];
        let mut values = vec![0.0; width * MEAN_ROWS];
        let mut bytes = vec![0; values.len() * info.dtype.size_bytes()];
        for first in (0..n_rows).step_by(MEAN_ROWS) {
            let n = width * MEAN_ROWS.min(n_rows - first);
            let bytes = &mut bytes[..n * info.dtype.size_bytes()];
            self.read(index, first * width, bytes)?;
            decode_f64(&self.names[index], info.dtype, bytes, &mut values[..n])?;
            for row in values[..n].chunks_exact(width) {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += value;
                }
            }
        }
        let mean: Arc<[f64]> = sum.iter().map(|sum| sum / n_rows as f64).collect();
        known().insert(index, Arc::clone(&mean));
        Ok(mean)
    }
}

/// Rows that are read at once for their mean.
const MEAN_ROWS: usize = 64;

fn row_elements(info: &TensorInfo) -> usize {
    info.shape.iter().skip(1).product()
}

impl TensorSource for ByToken {
    fn info(&self) -> &SourceInfo {
        self.all[self.own].info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.all[self.own].aliases().clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.all[self.own].stored_dtype(&self.names[index]);
        stored.unwrap_or(self.tensors[index].info.dtype)
    }

    fn is_computed(&self, index: usize) -> bool {
        self.rows[index].is_some() || self.all[self.own].is_computed(&self.names[index])
    }

    fn held_bytes(&self) -> u64 {
        self.all[self.own].source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let name = self.names[index].as_str();
        let Some(rows) = &self.rows[index] else {
            return self.all[self.own].read(name, first, out);
        };
        let info = &self.tensors[index].info;
        let (width, size) = (row_elements(info), info.dtype.size_bytes());
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, within) = (at / width, at % width);
            let n_left = rest.len() / size;
            // Rows that follow each other there as here are read at once.
            let mut n_rows = 1;
            if let Row::Of { source, row: from } = rows[row] {
                let follows = |n: usize| {
                    let row = from + n;
                    rows.get(at / width + n) == Some(&Row::Of { source, row })
                };
                while n_rows * width - within < n_left && follows(n_rows) {
                    n_rows += 1;
                }
            }
            let n = n_left.min(n_rows * width - within);
            let (part, after) = rest.split_at_mut(n * size);
            match &rows[row] {
                Row::Of { source, row } => {
                    self.copy((*source, name), row * width + within, info, part)?;
                }
                Row::Mean(of) => self.mean(name, of, within, info, part)?,
                Row::MeanOfFirst(n_rows) => {
                    let mean = self.mean_of_first(index, *n_rows)?;
                    encode_f64(name, info.dtype, &mean[within..within + n], part)?;
                }
                Row::Zero => part.fill(0),
            }
            (at, rest) = (at + n, after);
        }
        Ok(())
    }
}
