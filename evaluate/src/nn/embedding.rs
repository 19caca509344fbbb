//! Embeddings: rows of a table.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use super::{Gradients, Host, Linear, Pass, Recorded, is_leaf};
use crate::Weights;

/// Rows of a table by id.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Tensor,
}

impl Embedding {
    /// Loads `{name}.weight: (rows, width)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, rows: usize, width: usize) -> crate::Result<Self> {
        let name = format!("{name}.weight");
        let table = weights.get(&name, &[rows, width], Linear::INIT)?;
        Ok(Self { table })
    }

    /// `ids: (b, n) -> (b, n, width)`.
    ///
    /// # Errors
    /// For an id outside the table, or when the device fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ids.dims2()?;
        candle_nn::Embedding::new(self.table.clone(), self.table.dim(1)?).forward(ids)
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
                let rows = Self { table }.forward(ids)?;
                let segment = Rows {
                    table: self.table.clone(),
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

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.table.dims()[0]
    }
}

/// Rows of a table that a pass has looked up.
struct Rows {
    table: Tensor,
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
            for (&id, row) in self.ids.iter().zip(by_output.values().chunks_exact(width)) {
                let sum = sum[id as usize * width..].iter_mut();
                sum.zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(Vec::new())
    }
}
