//! Position tables for another image window or text length.
//!
//! A relative position bias table has `(2w − 1)²` rows for pairs of patches in a window of `w × w`
//! patches, then rows that do not depend on the window: three for the class token and those of the
//! text. Only the former are resized.

use std::fmt;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis, concatenate};

use super::resample;
use crate::{ConversionFault, Result};

/// The way of resizing the image rows of a relative position bias table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Cubic convolution on the grid of offsets, as vl-merging does.
    Bicubic,
    /// The same, smoothed when shrinking, as open_clip does with the positions of images.
    BicubicAntialiased,
    /// Offsets spread geometrically, then a cubic spline, as VLMo and BEiT do. Cannot shrink.
    Geometric,
    /// The same, and for a smaller window the middle of the table, as the published programs of BEiT, VLMo and EVE
    /// really do: their ratio never falls below 1.01, so the table is cropped and not shrunk.
    GeometricOrCrop,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bicubic => "bicubic",
            Self::BicubicAntialiased => "bicubic, smoothed",
            Self::Geometric => "geometric",
            Self::GeometricOrCrop => "geometric, cropped where it is smaller",
        })
    }
}

impl Resize {
    /// Checks that a table for windows of `from` patches a side can be brought to `to`.
    ///
    /// # Errors
    /// [`ConversionFault::CannotShrink`] for [`Resize::Geometric`], and [`ConversionFault::WindowTooSmall`] where a
    /// spline is laid.
    pub fn check(self, key: &str, from: usize, to: usize) -> Result<()> {
        if matches!(self, Self::Bicubic | Self::BicubicAntialiased) || from == to {
            return Ok(());
        }
        if to < from && self == Self::Geometric {
            return Err(ConversionFault::CannotShrink {
                key: key.to_owned(),
                from,
                to,
            }
            .into());
        }
        if side(from) < resample::SPLINE_MIN_SIDE {
            return Err(ConversionFault::WindowTooSmall {
                key: key.to_owned(),
                window: from,
            }
            .into());
        }
        Ok(())
    }

    fn weights(self, from: usize, to: usize) -> Array2<f64> {
        match self {
            _ if from == to => Array2::eye(from),
            Self::Bicubic => resample::bicubic(from, to),
            Self::BicubicAntialiased => resample::bicubic_smoothed(from, to),
            Self::Geometric | Self::GeometricOrCrop => resample::geometric_spline(from, to),
        }
    }
}

/// Number of different offsets along one axis of a window.
#[must_use]
pub(super) fn side(window: usize) -> usize {
    2 * window - 1
}

/// Resizes the first `(2·from − 1)²` rows of `table: (rows, columns)` to `(2·to − 1)²`, each column
/// a square of its own, and keeps the other rows.
///
/// # Panics
/// When the table has fewer rows than the window asks for, or [`Resize::check`] was not heeded.
#[must_use]
pub fn resize_relative(
    table: ArrayView2<'_, f64>,
    from: usize,
    to: usize,
    resize: Resize,
) -> Array2<f64> {
    let n_image = side(from) * side(from);
    let (image, others) = table.split_at(Axis(0), n_image);
    let resized = resize_square(image, side(from), side(to), resize);
    stack_rows(&[resized.view(), others])
}

/// Resizes `table: (1, n + from², d)` to `(1, n + to², d)`; the first n rows, those of the class token and others, are
/// kept. A table `(1, from², d)` has no such row.
///
/// # Panics
/// When the table has not the rows that the window asks for.
#[must_use]
pub fn resize_absolute(
    table: ArrayView3<'_, f64>,
    from: usize,
    to: usize,
    resize: Resize,
) -> Array3<f64> {
    let rows = table.index_axis(Axis(0), 0);
    let n_extra = rows.nrows().saturating_sub(from * from);
    let (class, grid) = rows.split_at(Axis(0), n_extra);
    let resized = resize_square(grid, from, to, resize);
    stack_rows(&[class, resized.view()]).insert_axis(Axis(0))
}

/// Resizes a table of text positions, `(from, d)`, to `(to, d)` linearly.
///
/// # Panics
/// When the table has not the rows that the length asks for.
#[must_use]
pub fn resize_text(table: ArrayView2<'_, f64>, from: usize, to: usize) -> Array2<f64> {
    match from == to {
        true => table.to_owned(),
        false => resample::linear(from, to).dot(&table),
    }
}

/// Resizes `from²` rows to `to²`, as squares of rows in row-major order.
fn resize_square(rows: ArrayView2<'_, f64>, from: usize, to: usize, resize: Resize) -> Array2<f64> {
    let weights = resize.weights(from, to);
    let n_columns = rows.ncols();
    let contiguous = rows.as_standard_layout();
    // Along the first axis of the square: (to, from) · (from, from · columns).
    let squashed = weights.dot(&reshaped(contiguous.view(), from, from * n_columns));
    // Along the second, one row of the square at a time: (to, from) · (from, columns).
    let mut resized = Array2::zeros((to * to, n_columns));
    let bands = resized.axis_chunks_iter_mut(Axis(0), to);
    for (mut band, line) in bands.zip(squashed.rows()) {
        let line = line.insert_axis(Axis(0));
        band.assign(&weights.dot(&reshaped(line, from, n_columns)));
    }
    resized
}

fn reshaped(array: ArrayView2<'_, f64>, n_rows: usize, n_columns: usize) -> ArrayView2<'_, f64> {
    array
        .into_shape_with_order((n_rows, n_columns))
        .expect("the array is contiguous and has as many elements")
}

pub(super) fn stack_rows(parts: &[ArrayView2<'_, f64>]) -> Array2<f64> {
    concatenate(Axis(0), parts).expect("all parts have the same columns")
}

#[cfg(test)]
mod tests {
    use ndarray::Array1;

    use super::*;

    /// Half of the last of five printed decimals, and the `f32` in which torch summed terms up to 24.
    const PRINTED: f64 = 2e-5;

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(
                difference < PRINTED,
                "{position}: {found} is not {expected}"
            );
        }
    }

    fn square(side: usize, value: impl Fn(usize, usize) -> f64) -> Array2<f64> {
        Array2::from_shape_fn((side * side, 1), |(row, _)| value(row / side, row % side))
    }

    #[test]
    fn bicubic_gives_torchs_numbers_when_growing() {
        // torch 2.8: interpolate(k ** 1.5 as 3 x 3, size=(5, 5), mode="bicubic").
        let grown = resize_square(
            square(3, |y, x| ((3 * y + x) as f64).powf(1.5)).view(),
            3,
            5,
            Resize::Bicubic,
        );
        let expected = [
            -0.57821, -0.30032, 0.32800, 1.42710, 2.18972, 1.17591, 1.79852, 2.95854, 4.47483,
            5.46426, 4.92698, 6.05506, 8.00000, 10.14825, 11.48566, 11.04323, 12.48829, 14.94240,
            17.55163, 19.15641, 15.23259, 16.82832, 19.53021, 22.38058, 24.12918,
        ];
        assert_close(grown.as_slice().expect("standard layout"), &expected);
    }

    #[test]
    fn bicubic_gives_torchs_numbers_when_shrinking() {
        // torch 2.8: interpolate(sin(k) as 5 x 5, size=(3, 3), mode="bicubic").
        let shrunk = resize_square(
            square(5, |y, x| ((5 * y + x) as f64).sin()).view(),
            5,
            3,
            Resize::Bicubic,
        );
        let expected = [
            -0.07664, 0.89617, -0.17533, -0.71331, -0.53657, 0.86418, 0.82621, -0.33233, -0.73277,
        ];
        assert_close(shrunk.as_slice().expect("standard layout"), &expected);
    }

    #[test]
    fn geometric_gives_the_published_numbers() {
        // The published program with SciPy on sin(0.3 row) + cos(0.2 column).
        let wave = |side| square(side, |y, x| (0.3 * y as f64).sin() + (0.2 * x as f64).cos());
        type Values = &'static [(usize, usize, f64)];
        let cases: [(usize, usize, Values); 3] = [
            (
                14,
                24,
                &[
                    (0, 0, 1.0),
                    (0, 46, 0.46852),
                    (1, 2, 1.09301),
                    (23, 23, -1.54465),
                    (5, 20, 0.06623),
                    (46, 3, 1.97591),
                ],
            ),
            (
                14,
                30,
                &[(1, 2, 1.06466), (5, 20, 0.60942), (58, 3, 1.98820)],
            ),
            (24, 30, &[(1, 2, 1.15744)]),
        ];
        for (from, to, values) in cases {
            let table = wave(side(from));
            let resized = resize_relative(table.view(), from, to, Resize::Geometric);
            for &(y, x, expected) in values {
                assert_close(&[resized[(y * side(to) + x, 0)]], &[expected]);
            }
        }
    }

    #[test]
    fn rows_that_are_no_offsets_are_kept_bit_for_bit() {
        let table =
            Array2::from_shape_fn((25 + 7, 4), |(row, column)| (row * 4 + column) as f64 / 3.0);
        for (to, resize) in [
            (4, Resize::Bicubic),
            (2, Resize::Bicubic),
            (5, Resize::Geometric),
        ] {
            let resized = resize_relative(table.view(), 3, to, resize);
            assert_eq!(resized.nrows(), side(to) * side(to) + 7);
            let (_, kept) = resized.view().split_at(Axis(0), side(to) * side(to));
            let (_, others) = table.view().split_at(Axis(0), 25);
            assert_eq!(kept, others, "{resize:?}");
        }
        let same = resize_relative(table.view(), 3, 3, Resize::Bicubic);
        assert_eq!(same, table);
    }

    #[test]
    fn each_column_is_a_square_of_its_own() {
        let both =
            Array2::from_shape_fn((9, 2), |(row, column)| ((row + 5 * column) as f64).sqrt());
        let resized = resize_relative(both.view(), 2, 4, Resize::Bicubic);
        for column in 0..2 {
            let alone: Array1<f64> = both.column(column).to_owned();
            let alone = alone.insert_axis(Axis(1));
            let expected = resize_relative(alone.view(), 2, 4, Resize::Bicubic);
            assert_eq!(resized.column(column), expected.column(0));
        }
    }

    #[test]
    fn the_class_position_stays_when_the_grid_grows() {
        let table = Array3::from_shape_fn((1, 5, 2), |(_, row, column)| (row * 2 + column) as f64);
        let resized = resize_absolute(table.view(), 2, 3, Resize::Bicubic);
        assert_eq!(resized.shape(), [1, 10, 2]);
        let class = |table: &Array3<f64>| [table[(0, 0, 0)], table[(0, 0, 1)]];
        assert_eq!(class(&resized), class(&table));
        // The middle of a 3 x 3 grid over a 2 x 2 one is the mean of all four.
        assert_eq!(resized[(0, 5, 0)], 5.0);
    }

    #[test]
    fn geometric_spacing_refuses_to_shrink() {
        let error = Resize::Geometric
            .check("table", 24, 14)
            .expect_err("refused");
        assert_eq!(
            error.to_string(),
            "`table` cannot shrink from a window of 24 to one of 14 patches by geometric spacing"
        );
        assert!(Resize::Geometric.check("table", 2, 3).is_err());
        assert!(Resize::Bicubic.check("table", 24, 14).is_ok());
    }
}
