//! Gram matrices of layer inputs: how they are summed, and the files they are kept in.
//!
//! A gram file is any checkpoint whose tensors are f64 (or f32) gram matrices under the published
//! names, e.g. `transformer.blocks.3.attn.v`. A matrix is stored either in full, shape `(n, n)`,
//! or packed, as the `n (n + 1) / 2` elements of its lower triangle row by row.

mod file;
mod shard;
mod sum;

pub use file::{GramRecord, add, write};
pub use shard::Shard;
pub use sum::Gram;

use std::sync::Arc;

use ndarray::Array2;

use crate::{Checkpoint, DType, Error, Result, StatisticsFault, decode_f64};

/// Gram matrices by name, read one at a time.
pub struct GramStore {
    checkpoint: Arc<Checkpoint>,
}

impl GramStore {
    /// Takes an open file for a gram file.
    ///
    /// # Errors
    /// [`Error::NotAGram`] for a tensor that is neither square nor a packed triangle,
    /// [`Error::DuplicateKey`].
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self> {
        checkpoint.require_unique_names()?;
        for (key, info) in checkpoint.tensors() {
            if width_of(&info.shape).is_none() || !info.dtype.is_float() {
                return Err(Error::NotAGram {
                    path: checkpoint.path().into(),
                    key: key.to_owned(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                });
            }
        }
        Ok(Self { checkpoint })
    }

    /// The file behind it.
    #[must_use]
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Width of the matrix of this name, if there is one.
    #[must_use]
    pub fn width(&self, key: &str) -> Option<usize> {
        width_of(&self.checkpoint.get(key)?.shape)
    }

    /// The gram matrix of a layer, for a merge: as [`GramStore::read`], and its triangles are compared if the file holds
    /// both.
    ///
    /// # Errors
    /// As [`GramStore::read`], and [`StatisticsFault::AsymmetricGram`].
    pub fn read_symmetric(&self, key: &str) -> Result<Array2<f64>> {
        let matrix = self.read(key)?;
        let info = self.checkpoint.require(key)?;
        let rounding = match info.dtype {
            DType::F64 | DType::F32 => ROUNDING,
            _ => ROUNDING_OF_HALVES,
        };
        let found = match info.shape.len() {
            1 => None,
            _ => asymmetry(&matrix, rounding),
        };
        match found {
            None => Ok(matrix),
            Some((row, column)) => Err(StatisticsFault::AsymmetricGram {
                path: self.checkpoint.path().into(),
                key: key.to_owned(),
                row,
                column,
                upper: matrix[[row, column]],
                lower: matrix[[column, row]],
            }
            .into()),
        }
    }

    /// The full symmetric matrix.
    ///
    /// # Errors
    /// When the file cannot be read, [`Error::MissingKey`], or [`StatisticsFault::NonFinite`].
    pub fn read(&self, key: &str) -> Result<Array2<f64>> {
        let info = self.checkpoint.require(key)?;
        let mut values = vec![0.0; info.n_elements()];
        if info.dtype == crate::DType::F64 {
            // Straight into place: these matrices are the largest things a merge holds.
            let bytes = bytemuck::cast_slice_mut(&mut values);
            self.checkpoint.read(key, 0, bytes)?;
        } else {
            decode_f64(
                key,
                info.dtype,
                &self.checkpoint.read_all(key)?,
                &mut values,
            )?;
        }
        StatisticsFault::check(&self.checkpoint, "a gram matrix", key, &values)?;
        let full = match info.shape.len() {
            1 => unpack(&values),
            _ => values,
        };
        let width = width_of(&info.shape).unwrap_or_default();
        // The length was checked when the file was opened: n² elements, by both branches.
        Array2::from_shape_vec((width, width), full).map_err(|_| Error::NotAGram {
            path: self.checkpoint.path().into(),
            key: key.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
        })
    }
}

/// The triangles of a gram matrix in `f32` or `f64` may differ by this part of the diagonal, for sums in `f32` do; and
/// those in narrower types by what these round.
const ROUNDING: f64 = 1e-3;
const ROUNDING_OF_HALVES: f64 = 1e-2;

/// The first element above the diagonal that differs from the one across it by more than `rounding` of the geometric
/// mean of its two diagonal elements, which no element of a gram matrix exceeds.
fn asymmetry(matrix: &Array2<f64>, rounding: f64) -> Option<(usize, usize)> {
    let scales: Vec<f64> = matrix.diag().iter().map(|d| d.abs().sqrt()).collect();
    for (row, scale) in scales.iter().enumerate() {
        for (column, other) in scales.iter().enumerate().skip(row + 1) {
            let apart = (matrix[[row, column]] - matrix[[column, row]]).abs();
            if apart > rounding * scale * other {
                return Some((row, column));
            }
        }
    }
    None
}

/// The lower triangle of a symmetric matrix, row by row.
#[must_use]
pub fn pack(matrix: &Array2<f64>) -> Vec<f64> {
    let rows = matrix.rows().into_iter().enumerate();
    rows.flat_map(|(row, values)| {
        values
            .into_iter()
            .take(row + 1)
            .copied()
            .collect::<Vec<_>>()
    })
    .collect()
}

/// The symmetric matrix of a packed lower triangle, row-major.
fn unpack(packed: &[f64]) -> Vec<f64> {
    let width = triangle_width(packed.len()).unwrap_or_default();
    let mut full = vec![0.0; width * width];
    let mut rest = packed;
    for row in 0..width {
        let (values, next) = rest.split_at(row + 1);
        rest = next;
        full[row * width..=row * width + row].copy_from_slice(values);
        for (column, &value) in values.iter().enumerate() {
            full[column * width + row] = value;
        }
    }
    full
}

/// Width of the square matrix that a tensor of this shape holds, in full or packed.
fn width_of(shape: &[usize]) -> Option<usize> {
    match *shape {
        [rows, columns] if rows == columns => Some(rows),
        [length] => triangle_width(length),
        _ => None,
    }
}

/// n with n (n + 1) / 2 = length.
fn triangle_width(length: usize) -> Option<usize> {
    let width = ((8.0 * length as f64 + 1.0).sqrt() as usize).saturating_sub(1) / 2;
    (width..=width + 1).find(|n| n * (n + 1) / 2 == length)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn a_packed_matrix_unpacks_to_itself() {
        let matrix = array![[1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [4.0, 5.0, 6.0]];
        let packed = pack(&matrix);
        assert_eq!(packed, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(unpack(&packed), matrix.into_raw_vec_and_offset().0);
    }

    #[test]
    fn triangles_may_differ_by_rounding_and_by_no_more() {
        // The geometric mean of the diagonal elements 4 and 9 is 6: 6e-3 is as much as may be.
        let with = |lower: f64| array![[4.0, 1.0, 0.0], [lower, 9.0, 0.0], [0.0, 0.0, 0.0]];
        assert_eq!(asymmetry(&with(1.0), ROUNDING), None);
        assert_eq!(asymmetry(&with(1.005), ROUNDING), None);
        assert_eq!(asymmetry(&with(1.007), ROUNDING), Some((0, 1)));
        assert_eq!(asymmetry(&with(1.007), ROUNDING_OF_HALVES), None);
        // An input that is always 0 has no product with another.
        let mut dead = with(1.0);
        dead[[2, 1]] = 1e-9;
        assert_eq!(asymmetry(&dead, ROUNDING), Some((1, 2)));
    }

    #[test]
    fn only_triangular_numbers_are_packed_matrices() {
        let widths: Vec<_> = (0..8).map(triangle_width).collect();
        assert_eq!(
            widths,
            [Some(0), Some(1), None, Some(2), None, None, Some(3), None]
        );
        assert_eq!(triangle_width(3072 * 3073 / 2), Some(3072));
    }
}
