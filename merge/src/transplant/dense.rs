//! Rows by a map between two spaces, and rows that are drawn.

use ndarray::{Array2, Axis};

use super::table::Table;
use crate::linear_algebra::spectral::{Eigen, polar, product};
use crate::low_rank::NoConvergence;
use crate::random::Draws;
use crate::{Result, TransplantFault};

/// Rows that are added to sums at once.
const BLOCK_ROWS: usize = 1024;

/// A rotation from one space to another, around the means of shared rows.
pub(super) struct Rotation {
    from: Vec<f64>,
    to: Vec<f64>,
    /// `(width from, width to)`.
    map: Array2<f64>,
}

impl Rotation {
    /// The map that takes the principal components of the donor's shared rows as near as may be to those of the model's:
    /// orthogonal Procrustes between as many components as the narrower table has. `shared` are pairs of rows, the
    /// donor's first.
    pub(super) fn of(donor: &Table, model: &Table, shared: &[(usize, usize)]) -> Result<Self> {
        let (from, to) = (
            mean(donor, shared, |pair| pair.0)?,
            mean(model, shared, |pair| pair.1)?,
        );
        let (a, b) = (donor.width, model.width);
        let mut own = [Array2::zeros((a, a)), Array2::zeros((b, b))];
        let mut across = Array2::<f64>::zeros((a, b));
        for block in shared.chunks(BLOCK_ROWS) {
            let left = centered(donor, block.iter().map(|pair| pair.0), &from)?;
            let right = centered(model, block.iter().map(|pair| pair.1), &to)?;
            own[0] += &product(left.t(), left.view());
            own[1] += &product(right.t(), right.view());
            across += &product(left.t(), right.view());
        }
        let failed = |_: NoConvergence| TransplantFault::NoConvergence {
            key: model.key.clone(),
        };
        let n = a.min(b);
        let [left, right] = own.map(|matrix| Eigen::of(&matrix).map(|eigen| eigen.vectors));
        let left = left.map_err(failed)?;
        let right = right.map_err(failed)?;
        let left = left.view().split_at(Axis(1), n).0;
        let right = right.view().split_at(Axis(1), n).0;
        let across = product(product(left.t(), across.view()).view(), right);
        let rotation = polar(across.view()).map_err(failed)?;
        let map = product(product(left, rotation.view()).view(), right.t());
        Ok(Self { from, to, map })
    }

    /// The place of a row of the donor's in the model's space.
    pub(super) fn apply(&self, row: &[f64], out: &mut [f64]) {
        out.copy_from_slice(&self.to);
        for ((value, from), weights) in row.iter().zip(&self.from).zip(self.map.rows()) {
            let value = value - from;
            for (out, weight) in out.iter_mut().zip(weights) {
                *out += value * weight;
            }
        }
    }
}

fn mean(
    table: &Table,
    shared: &[(usize, usize)],
    place: impl Fn(&(usize, usize)) -> usize,
) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; table.width];
    let mut row = vec![0.0; table.width];
    for pair in shared {
        table.read(place(pair), &mut row)?;
        for (sum, value) in sum.iter_mut().zip(&row) {
            *sum += value;
        }
    }
    let n = shared.len().max(1) as f64;
    sum.iter_mut().for_each(|sum| *sum /= n);
    Ok(sum)
}

fn centered(
    table: &Table,
    places: impl ExactSizeIterator<Item = usize>,
    mean: &[f64],
) -> Result<Array2<f64>> {
    let mut rows = Array2::zeros((places.len(), table.width));
    for (place, mut out) in places.zip(rows.rows_mut()) {
        // Rows of an array that is made here lie one behind the other.
        if let Some(out) = out.as_slice_mut() {
            table.read(place, out)?;
            for (value, mean) in out.iter_mut().zip(mean) {
                *value -= mean;
            }
        }
    }
    Ok(rows)
}

/// The normal distribution with the mean and the covariance of all rows of a table.
pub(super) struct Distribution {
    mean: Vec<f64>,
    /// A root of the covariance: `(width, directions)`.
    root: Array2<f64>,
    draws: Draws,
}

impl Distribution {
    pub(super) fn of(table: &Table, mean: Vec<f64>, seed: u64) -> Result<Self> {
        let width = table.width;
        let mut covariance = Array2::<f64>::zeros((width, width));
        let places: Vec<usize> = (0..table.rows).collect();
        for block in places.chunks(BLOCK_ROWS) {
            let rows = centered(table, block.iter().copied(), &mean)?;
            covariance += &product(rows.t(), rows.view());
        }
        covariance /= table.rows.max(1) as f64;
        let failed = |_: NoConvergence| TransplantFault::NoConvergence {
            key: table.key.clone(),
        };
        let eigen = Eigen::of(&covariance).map_err(failed)?;
        let mut root = eigen.vectors;
        for (mut column, value) in root.columns_mut().into_iter().zip(&eigen.values) {
            // Rounding may leave a variance of zero a little below it.
            column *= value.max(0.0).sqrt();
        }
        Ok(Self {
            mean,
            root,
            draws: Draws::new(seed, &table.key),
        })
    }

    /// The draw number `index`.
    pub(super) fn draw(&self, index: usize, out: &mut [f64]) {
        let mut normal = vec![0.0f32; out.len()];
        self.draws.add_normal(1.0, index * out.len(), &mut normal);
        for ((out, mean), weights) in out.iter_mut().zip(&self.mean).zip(self.root.rows()) {
            let parts = weights.iter().zip(&normal);
            *out = mean + parts.map(|(w, z)| w * f64::from(*z)).sum::<f64>();
        }
    }
}
