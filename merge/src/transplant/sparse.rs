//! Combinations of a few shared rows that approximate a row.

use super::table::Rows;
use crate::Result;

/// A combination of shared rows that approximates a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Combination {
    /// The places of its rows in the list of shared rows.
    pub(super) atoms: Vec<u32>,
    /// The factor of each of its rows.
    pub(super) factors: Vec<f64>,
    /// The length of the [`rest`] as a share of the length of the row.
    pub(super) error: f64,
}

impl Combination {
    /// The same combination with its error as an approximation of `target`. Its rows are rows of `points`.
    pub(super) fn measured(mut self, points: &Rows, target: &[f32]) -> Self {
        let atoms = self.atoms.iter().map(|&atom| atom as usize);
        let rest = rest(target, points, atoms.zip(self.factors.iter().copied()));
        let length =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let of_target = length(&mut target.iter().map(|value| f64::from(*value)));
        self.error = match of_target > 0.0 {
            true => length(&mut rest.into_iter()) / of_target,
            false => 0.0,
        };
        self
    }
}

/// The rest of a row: `target` minus the sum of the `chosen` rows of `points` times their factors, in f64.
pub(super) fn rest(
    target: &[f32],
    points: &Rows,
    chosen: impl Iterator<Item = (usize, f64)>,
) -> Vec<f64> {
    let mut rest: Vec<f64> = target.iter().map(|value| f64::from(*value)).collect();
    for (atom, factor) in chosen {
        for (rest, value) in rest.iter_mut().zip(points.row(atom)) {
            *rest -= factor * f64::from(*value);
        }
    }
    rest
}

/// Finds combinations.
pub(super) trait Solver: Sync {
    /// A combination for each target, without the shared rows that are `excluded`. A target of zeros gets an empty one.
    fn block(&self, targets: &Rows, excluded: &[bool]) -> Result<Vec<Combination>>;
}
