//! Embeddings: rows of a table.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use super::{Gradients, Host, Linear, Pass, Recorded, is_leaf};
use crate::Weights;

/// Rows of a table by id.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Tensor,
    /// The row that no gradient reaches.
    padding: Option<u32>,
}

impl Embedding {
    /// Loads `{name}.weight: (rows, width)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, rows: usize, width: usize) -> crate::Result<Self> {
        let name = format!("{name}.weight");
        let table = weights.get(&name, &[rows, width], Linear::INIT)?;
        Ok(Self {
            table,
            padding: None,
        })
    }

    /// All rows, `(rows, width)`.
    pub(crate) fn table(&self) -> &Tensor {
        &self.table
    }

    /// The same with a row that is looked up, but never learned.
    #[must_use]
    pub fn with_padding(self, row: u32) -> Self {
        Self {
            padding: Some(row),
            ..self
        }
    }

    /// `ids: (b, n) -> (b, n, width)`.
    ///
    /// # Errors
    /// For an id outside the table, or when the device fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ids.dims2()?;
        let rows =
            candle_nn::Embedding::new(self.table.clone(), self.table.dim(1)?).forward(ids)?;
        match self.padding {
            Some(padding) if self.table.track_op() => {
                let is_padding = ids.eq(padding)?.unsqueeze(2)?.broadcast_as(rows.shape())?;
                is_padding.where_cond(&rows.detach(), &rows)
            }
            _ => Ok(rows),
        }
    }

    /// The same on the pass's tape, if there is one: the gradient of a row is then added where it
    /// belongs, without a table of zeros around it.
    ///
    /// # Errors
    /// As [`Embedding::forward`].
    pub fn forward_on(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match pass.tape() {
            Some(tape) if tape.fuses() && is_leaf(&self.table) && self.table.is_variable() => {
                let table = self.table.detach();
                let padding = self.padding;
                let rows = Self { table, padding }.forward(ids)?;
                let segment = Rows {
                    table: self.table.clone(),
                    padding,
                    ids: ids.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?,
                };
                tape.record(Vec::new(), &rows, Box::new(segment))
            }
            _ => self.forward(ids),
        }
    }

    /// Row `index`: `(width)`.
    ///
    /// # Errors
    /// When the table has no such row.
    pub fn row(&self, index: usize) -> Result<Tensor> {
        self.table.get(index)
    }

    /// Whether the table is a variable.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.table.track_op()
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.table.dims()[0]
    }
}

/// Rows of a table that a pass has looked up.
struct Rows {
    table: Tensor,
    padding: Option<u32>,
    ids: Vec<u32>,
}

impl Recorded for Rows {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let width = self.table.dim(1)?;
        let by_output = by_output.contiguous()?;
        let by_output = Host::of(&by_output)?;
        if let Some(sum) = gradients.host(&self.table) {
            let rows = self.ids.iter().zip(by_output.values().chunks_exact(width));
            for (&id, row) in rows.filter(|(id, _)| Some(**id) != self.padding) {
                let sum = sum[id as usize * width..].iter_mut();
                sum.zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(Vec::new())
    }
}
