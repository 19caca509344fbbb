//! Tables of a model with a row for each token.

use std::sync::Arc;

use crate::execute::finite;
use crate::plan::vocabularies::names;
use crate::{Checkpoint, DType, MergeFault, Result, TransplantFault, decode_f64, encode_f64, ties};

/// Rows that are read at once.
const BLOCK_ROWS: usize = 256;

/// The use of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// A row is what the model reads for a token.
    Embeddings,
    /// A row is what the model compares its output with, to score a token.
    Head,
    /// One number for each token.
    Numbers,
}

/// A tensor of a model with a row for each token.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) source: Arc<Checkpoint>,
    pub(super) key: String,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) dtype: DType,
}

/// Rows of numbers, one behind the other.
pub(super) struct Rows {
    pub(super) width: usize,
    pub(super) values: Vec<f32>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }
}

impl Table {
    pub(super) fn of(source: &Arc<Checkpoint>, key: &str) -> Result<Self> {
        let info = source.require(key)?;
        let (rows, width) = match info.shape[..] {
            [rows] => (rows, 1),
            [rows, width] if width > 0 => (rows, width),
            _ => return Err(Self::not_a_table(source, key, &info.shape)),
        };
        if !info.dtype.is_float() {
            return Err(Self::not_a_table(source, key, &info.shape));
        }
        Ok(Self {
            source: Arc::clone(source),
            key: key.to_owned(),
            rows,
            width,
            dtype: info.dtype,
        })
    }

    fn not_a_table(source: &Checkpoint, key: &str, shape: &[usize]) -> crate::Error {
        TransplantFault::NotATable {
            path: source.path().into(),
            key: key.to_owned(),
            shape: shape.to_vec(),
        }
        .into()
    }

    /// Reads rows from `first` on until `out` is full. All must be numbers, for sums of them are wanted.
    pub(super) fn read(&self, first: usize, out: &mut [f64]) -> Result<()> {
        let mut bytes = vec![0; self.dtype.bytes_of(out.len())];
        self.source
            .read(&self.key, first * self.width, &mut bytes)?;
        if !finite::is_finite(self.dtype, &bytes) {
            let (at, value) = finite::first_of(&self.key, self.dtype, &bytes)?;
            let info = self.source.require(&self.key)?;
            return Err(MergeFault::NonFiniteInput {
                path: self.source.path().into(),
                key: self.key.clone(),
                index: info.index_of(first * self.width + at),
                value,
            }
            .into());
        }
        decode_f64(&self.key, self.dtype, &bytes, out)
    }

    /// Some rows, in this order.
    pub(super) fn gather(&self, rows: &[usize]) -> Result<Rows> {
        let mut values = vec![0.0; rows.len() * self.width];
        let mut row = vec![0.0; self.width];
        for (&place, out) in rows.iter().zip(values.chunks_exact_mut(self.width)) {
            self.read(place, &mut row)?;
            for (out, value) in out.iter_mut().zip(&row) {
                *out = *value as f32;
            }
        }
        Ok(Rows {
            width: self.width,
            values,
        })
    }

    /// Shows all rows, one after the other, each with its number.
    pub(super) fn each(&self, mut see: impl FnMut(usize, &[f64])) -> Result<()> {
        let mut block = vec![0.0; BLOCK_ROWS * self.width];
        for first in (0..self.rows).step_by(BLOCK_ROWS) {
            let n = BLOCK_ROWS.min(self.rows - first);
            let block = &mut block[..n * self.width];
            self.read(first, block)?;
            for (row, values) in block.chunks_exact(self.width).enumerate() {
                see(first + row, values);
            }
        }
        Ok(())
    }

    /// The mean of all rows.
    pub(super) fn mean(&self) -> Result<Vec<f64>> {
        let mut sum = vec![0.0; self.width];
        self.each(|_, row| {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        })?;
        let n = self.rows.max(1) as f64;
        sum.iter_mut().for_each(|sum| *sum /= n);
        Ok(sum)
    }

    /// Elements of a row as they are stored, in another type where the model has one.
    pub(super) fn copy(&self, first: usize, dtype: DType, out: &mut [u8]) -> Result<()> {
        if dtype == self.dtype {
            return self.source.read(&self.key, first, out);
        }
        let mut values = vec![0.0; out.len() / dtype.size_bytes()];
        let mut bytes = vec![0; self.dtype.bytes_of(values.len())];
        self.source.read(&self.key, first, &mut bytes)?;
        decode_f64(&self.key, self.dtype, &bytes, &mut values)?;
        encode_f64(&self.key, dtype, &values, out)
    }
}

/// The tables of the model that gets other tokens, with their uses.
pub(super) fn of_model(model: &Arc<Checkpoint>) -> Result<Vec<(TableKind, Table)>> {
    let mut found = Vec::new();
    for (name, _) in model
        .tensors()
        .filter(|(name, _)| names::has_row_per_token(name))
    {
        let table = Table::of(model, name)?;
        let kind = match model.require(name)?.shape.len() {
            1 => TableKind::Numbers,
            _ if ties::is_head(name) => TableKind::Head,
            _ => TableKind::Embeddings,
        };
        found.push((kind, table));
    }
    match found.iter().any(|(kind, _)| *kind != TableKind::Numbers) {
        true => Ok(found),
        false => Err(no_table(model)),
    }
}

fn no_table(model: &Checkpoint) -> crate::Error {
    TransplantFault::NoTable {
        path: model.path().into(),
        known: names::ROW_PER_TOKEN.join(", "),
    }
    .into()
}

/// The tables of the model that gives its tokens.
pub(super) struct DonorTables {
    pub(super) embeddings: Table,
    /// Its head, which may be its embeddings.
    pub(super) head: Option<Table>,
}

impl DonorTables {
    pub(super) fn of(donor: &Arc<Checkpoint>) -> Result<Self> {
        let names = || donor.tensors().map(|(name, _)| name);
        let shared = || {
            let mut found = names().filter(|name| ties::may_be_shared(name));
            let first = found.next().map(str::to_owned);
            first.filter(|_| found.next().is_none())
        };
        let embeddings = ties::shared_embeddings(donor).or_else(shared);
        let embeddings = Table::of(donor, &embeddings.ok_or_else(|| no_table(donor))?)?;
        let mut heads = names().filter(|name| ties::is_head(name));
        let head = match (heads.next(), heads.next()) {
            (Some(head), None) => Some(Table::of(donor, head)?),
            (None, _) if ties::said(donor)? != ties::Said::Apart => Some(embeddings.clone()),
            _ => None,
        };
        Ok(Self { embeddings, head })
    }
}
