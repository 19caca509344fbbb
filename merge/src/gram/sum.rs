//! A gram matrix while it is being summed.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use rayon::prelude::*;

use super::triangle_width;

/// Rows of the matrix that one task computes at a time.
const PANEL: usize = 128;

/// Rows of inputs that are summed in f32 before they are added to the sum in f64: the error stays
/// below 1e-6 of the matrix.
const ROWS_IN_SINGLE: usize = 2048;

/// `XᵀX` of the inputs of a linear layer, `X: (rows, width)`: the lower triangle in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    width: usize,
    packed: Vec<f64>,
    rows: u64,
}

impl Gram {
    /// Of no rows.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self {
            width,
            packed: vec![0.0; width * (width + 1) / 2],
            rows: 0,
        }
    }

    /// From a stored triangle; `None` if its length is that of none.
    #[must_use]
    pub fn from_packed(packed: Vec<f64>, rows: u64) -> Option<Self> {
        let width = triangle_width(packed.len())?;
        Some(Self {
            width,
            packed,
            rows,
        })
    }

    /// Inputs of the layer.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many rows were summed.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The lower triangle, row by row.
    #[must_use]
    pub fn packed(&self) -> &[f64] {
        &self.packed
    }

    /// The whole symmetric matrix.
    #[must_use]
    pub fn full(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.width, self.width), |(row, column)| {
            let (high, low) = (row.max(column), row.min(column));
            self.packed[high * (high + 1) / 2 + low]
        })
    }

    /// Adds rows of inputs, each `times` times: products in f32, at most [`ROWS_IN_SINGLE`] rows
    /// at a time, sums of these in f64. On all cores; the result does not depend on their number.
    ///
    /// # Panics
    /// When the length of `inputs` is no multiple of the width.
    pub fn add_rows(&mut self, inputs: &[f32], times: u32) {
        assert!(
            self.width > 0 && inputs.len().is_multiple_of(self.width),
            "whole rows"
        );
        let width = self.width;
        for rows in inputs.chunks(ROWS_IN_SINGLE * width) {
            let x = MatRef::from_row_major_slice(rows, rows.len() / width, width);
            // The last panels are the largest: begun first, they do not keep the others waiting.
            let panels = panels(&mut self.packed, width);
            panels.into_par_iter().rev().for_each_init(
                || vec![0.0f32; PANEL * width],
                |product, (first, triangle)| {
                    add_panel(triangle, product, x, first, width, times);
                },
            );
        }
        self.rows += u64::from(times) * (inputs.len() / width) as u64;
    }

    /// Adds the sum over other rows; false, and nothing is added, if it is of another width.
    #[must_use]
    pub fn add(&mut self, other: &Self) -> bool {
        if self.width != other.width {
            return false;
        }
        for (sum, value) in self.packed.iter_mut().zip(&other.packed) {
            *sum += value;
        }
        self.rows += other.rows;
        true
    }
}

/// The triangle in stretches of [`PANEL`] rows, each with its first row.
fn panels(mut packed: &mut [f64], width: usize) -> Vec<(usize, &mut [f64])> {
    let mut panels = Vec::new();
    for first in (0..width).step_by(PANEL) {
        let last = (first + PANEL).min(width);
        let length = last * (last + 1) / 2 - first * (first + 1) / 2;
        let (panel, rest) = packed.split_at_mut(length);
        panels.push((first, panel));
        packed = rest;
    }
    panels
}

fn add_panel(
    mut triangle: &mut [f64],
    product: &mut [f32],
    x: MatRef<'_, f32>,
    first: usize,
    width: usize,
    times: u32,
) {
    let rows = PANEL.min(width - first);
    let columns = first + rows;
    let product = &mut product[..rows * columns];
    let out = MatMut::from_row_major_slice_mut(product, rows, columns);
    let lhs = x.subcols(first, rows).transpose();
    matmul(
        out,
        Accum::Replace,
        lhs,
        x.subcols(0, columns),
        1.0f32,
        Par::Seq,
    );
    let times = f64::from(times);
    for (row, values) in product.chunks_exact(columns).enumerate() {
        let (sums, rest) = triangle.split_at_mut(first + row + 1);
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += times * f64::from(value);
        }
        triangle = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// Sums of up to 2048 products in f32, against f64: relative Frobenius.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn a_sum_is_that_of_the_definition() {
        for (rows, width) in [(1, 1), (3, 2), (5000, 7), (300, 129), (64, 300)] {
            let mut x = vec![0.0; rows * width];
            Draws::new(1, "x").add_normal(1.0, 0, &mut x);
            let mut gram = Gram::new(width);
            gram.add_rows(&x, 1);
            gram.add_rows(&x, 2);
            assert_eq!(gram.rows(), 3 * rows as u64);
            let full = gram.full();
            let (mut error, mut norm) = (0.0, 0.0);
            for i in 0..width {
                for j in 0..width {
                    let terms = (0..rows)
                        .map(|r| f64::from(x[r * width + i]) * f64::from(x[r * width + j]));
                    let expected = 3.0 * terms.sum::<f64>();
                    error += (full[[i, j]] - expected).powi(2);
                    norm += expected.powi(2);
                }
            }
            assert!(
                error.sqrt() <= TOLERANCE * norm.sqrt(),
                "{rows} x {width}: {error} of {norm}"
            );
        }
    }

    #[test]
    fn sums_of_parts_add_up() {
        let x: Vec<f32> = (0..60).map(|n| (n % 7) as f32).collect();
        let (mut whole, mut first, mut second) = (Gram::new(3), Gram::new(3), Gram::new(3));
        whole.add_rows(&x, 1);
        first.add_rows(&x[..30], 1);
        second.add_rows(&x[30..], 1);
        assert!(first.add(&second));
        assert_eq!(whole, first);
        assert!(!first.add(&Gram::new(4)));
    }
}
