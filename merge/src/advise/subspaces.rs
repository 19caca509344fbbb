//! The overlap of the leading left singular vectors of task vectors.

use ndarray::{Array2, ArrayView2};

use crate::low_rank::{self, NoConvergence, Truncation};
use crate::random::Draws;
use crate::{Checkpoint, MergeFault, Result, decode_f64};

/// Singular values below this share of the largest have no direction.
const LEAST: f64 = 1e-6;

/// The leading left singular vectors of a matrix.
pub(super) struct Leading {
    /// In columns, `(rows, rank)`; fewer where the matrix has a lower rank.
    vectors: Array2<f64>,
    /// Share of the sum of all squares that they hold; `None` for a matrix of zeros.
    pub share: Option<f64>,
}

/// Those of the task vector of a matrix of `rows` by `columns`, at most `rank`.
///
/// # Errors
/// When a file cannot be read, and [`MergeFault::NoDecomposition`].
pub(super) fn leading(
    base: &Checkpoint,
    model: &Checkpoint,
    key: &str,
    (rows, columns): (usize, usize),
    rank: usize,
) -> Result<Leading> {
    let read = |of: &Checkpoint| {
        let info = of.require(key)?;
        let mut values = vec![0.0; info.n_elements()];
        decode_f64(key, info.dtype, &of.read_all(key)?, &mut values)?;
        Ok::<_, crate::Error>(values)
    };
    let base = read(base)?;
    // The difference is exact before it is rounded.
    let delta = read(model)?.into_iter().zip(base);
    let delta: Vec<f32> = delta.map(|(own, base)| (own - base) as f32).collect();
    let energy: f64 = delta.iter().map(|&value| f64::from(value).powi(2)).sum();
    let delta = Array2::from_shape_vec((rows, columns), delta).unwrap_or_default();
    if energy == 0.0 {
        return Ok(Leading {
            vectors: Array2::zeros((rows, 0)),
            share: None,
        });
    }
    let draws = Draws::new(0, key);
    let found = low_rank::truncated(&delta, Truncation::Rank(rank), &draws);
    let found = found.map_err(|NoConvergence| MergeFault::NoDecomposition {
        slot: key.to_owned(),
    })?;
    let largest = found.values.first().copied().unwrap_or(0.0);
    let kept = found
        .values
        .iter()
        .take_while(|value| **value > LEAST * largest);
    let n = kept.count();
    // The left factor has the roots of the singular values in it.
    let vectors = Array2::from_shape_fn((rows, n), |(row, column)| {
        f64::from(found.left[(row, column)]) / found.values[column].sqrt()
    });
    let held: f64 = found.values[..n].iter().map(|value| value * value).sum();
    Ok(Leading {
        vectors,
        share: Some((held / energy).min(1.0)),
    })
}

/// The overlap of the spaces of two matrices.
pub(super) struct Common {
    /// Cosines of the principal angles, the largest first.
    pub cosines: Vec<f64>,
    /// Mean of their squares: 1 where one space holds the other, 0 where they are orthogonal.
    pub overlap: f64,
    /// The same for spaces of these dimensions that have nothing to do with each other.
    pub by_chance: f64,
}

/// The overlap of two spaces; `None` where one has no direction.
///
/// # Errors
/// [`MergeFault::NoDecomposition`].
pub(super) fn common(key: &str, a: &Leading, b: &Leading) -> Result<Option<Common>> {
    let (rows, dimensions) = (a.vectors.nrows(), [a.vectors.ncols(), b.vectors.ncols()]);
    let fewer = dimensions[0].min(dimensions[1]);
    if fewer == 0 {
        return Ok(None);
    }
    let between: ArrayView2<'_, f64> = a.vectors.t();
    let between = between.dot(&b.vectors);
    let cosines = crate::linear_algebra::spectral::singular_values(between.view());
    let mut cosines = cosines.map_err(|NoConvergence| MergeFault::NoDecomposition {
        slot: key.to_owned(),
    })?;
    for cosine in &mut cosines {
        *cosine = cosine.clamp(0.0, 1.0);
    }
    let squares: f64 = cosines.iter().map(|cosine| cosine * cosine).sum();
    Ok(Some(Common {
        cosines,
        overlap: squares / fewer as f64,
        by_chance: dimensions[0].max(dimensions[1]) as f64 / rows as f64,
    }))
}
