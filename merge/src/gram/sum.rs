//! A gram matrix while it is being summed.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use rayon::prelude::*;

use super::triangle_width;

/// Elements that one task adds to the sum at a time.
const ELEMENTS_PER_TASK: usize = 1 << 18;

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

    /// The number of summed rows.
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

    /// Adds rows of inputs, each `times` times: products in f32, at most 2048 rows
    /// at a time, sums of these in f64. `products` is room that is used again from call to call.
    ///
    /// # Panics
    /// When the length of `inputs` is no multiple of the width.
    pub fn add_rows(&mut self, inputs: &[f32], times: u32, products: &mut Vec<f32>) {
        assert!(
            self.width > 0 && inputs.len().is_multiple_of(self.width),
            "whole rows"
        );
        let width = self.width;
        if products.len() < width * width {
            products.resize(width * width, 0.0);
        }
        let products = &mut products[..width * width];
        for rows in inputs.chunks(ROWS_IN_SINGLE * width) {
            let x = MatRef::from_row_major_slice(rows, rows.len() / width, width);
            triangular::matmul(
                MatMut::from_row_major_slice_mut(products, width, width),
                BlockStructure::TriangularLower,
                Accum::Replace,
                x.transpose(),
                BlockStructure::Rectangular,
                x,
                BlockStructure::Rectangular,
                1.0f32,
                Par::rayon(0),
            );
            self.add_products(products, times);
        }
        self.rows += u64::from(times) * (inputs.len() / width) as u64;
    }

    /// Adds the lower triangle of `products: (width, width)`.
    fn add_products(&mut self, products: &[f32], times: u32) {
        let width = self.width;
        let step = (ELEMENTS_PER_TASK / width).max(1);
        let panels = panels(&mut self.packed, width, step).into_par_iter();
        panels.for_each(|(first, mut triangle)| {
            let rows = products
                .chunks_exact(width)
                .enumerate()
                .skip(first)
                .take(step);
            for (row, values) in rows {
                let (sums, rest) = triangle.split_at_mut(row + 1);
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += f64::from(times) * f64::from(value);
                }
                triangle = rest;
            }
        });
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

/// The triangle in stretches of `step` rows, each with its first row.
fn panels(mut packed: &mut [f64], width: usize, step: usize) -> Vec<(usize, &mut [f64])> {
    let mut panels = Vec::new();
    for first in (0..width).step_by(step) {
        let last = (first + step).min(width);
        let length = last * (last + 1) / 2 - first * (first + 1) / 2;
        let (panel, rest) = packed.split_at_mut(length);
        panels.push((first, panel));
        packed = rest;
    }
    panels
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
            let mut products = Vec::new();
            gram.add_rows(&x, 1, &mut products);
            gram.add_rows(&x, 2, &mut products);
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
        let mut products = vec![7.0; 100];
        whole.add_rows(&x, 1, &mut products);
        first.add_rows(&x[..30], 1, &mut products);
        second.add_rows(&x[30..], 1, &mut products);
        assert!(first.add(&second));
        assert_eq!(whole, first);
        assert!(!first.add(&Gram::new(4)));
    }
}
