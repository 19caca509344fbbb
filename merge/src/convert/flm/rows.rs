//! Tables that get rows, and rows that become tables.

use ndarray::{ArrayD, Axis, IxDyn, concatenate};

use crate::Result;
use crate::methods::{GroupData, WholeKernel};
use crate::random::Draws;

/// Standard deviation of rows for new tokens, those of the output bias included, as published.
const DEVIATION: f32 = 0.02;

/// Appends rows that are drawn.
pub(super) struct AddedRows {
    n_added: usize,
    draws: Draws,
}

impl AddedRows {
    pub(super) fn new(n_added: usize, seed: u64, name: &str) -> Self {
        Self {
            n_added,
            draws: Draws::new(seed, &format!("{name}: rows for new tokens")),
        }
    }
}

impl WholeKernel for AddedRows {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let table = group.member(0)?;
        let mut shape = table.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = self.n_added;
        }
        let mut values = vec![0.0f32; shape.iter().product()];
        self.draws.add_normal(DEVIATION, 0, &mut values);
        let values = values.into_iter().map(f64::from).collect();
        let added = ArrayD::from_shape_vec(IxDyn(&shape), values)
            .expect("there are as many values as the shape says");
        Ok(concatenate(Axis(0), &[table.view(), added.view()])
            .expect("both parts have the same columns"))
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        let width: usize = shape.iter().skip(1).product();
        let n = shape.iter().product::<usize>() + self.n_added * width;
        16 * n as u64 + 4 * (self.n_added * width) as u64
    }
}

/// Keeps one row, as a table of one row.
pub(super) struct OneRow(pub usize);

impl WholeKernel for OneRow {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let table = group.member(0)?;
        Ok(table.select(Axis(0), &[self.0]))
    }

    fn peak_bytes(&self, shape: &[usize], _: usize) -> u64 {
        16 * shape.iter().product::<usize>() as u64
    }
}

/// Puts tables with the same columns one below the other.
pub(super) struct JoinedRows(pub usize);

impl WholeKernel for JoinedRows {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let parts: Vec<_> = (0..self.0)
            .map(|index| group.member(index))
            .collect::<Result<_>>()?;
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        Ok(concatenate(Axis(0), &views).expect("the parts have one shape"))
    }

    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64 {
        16 * (n_members * shape.iter().product::<usize>()) as u64
    }
}
