//! Rows as combinations of few other rows.

use super::table::Rows;
use crate::Result;

/// A combination of shared rows that approximates a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Combination {
    /// The shared rows, by their places in the list of them.
    pub(super) atoms: Vec<u32>,
    /// Their factors.
    pub(super) factors: Vec<f64>,
    /// The length of what is left over, as a share of the row's.
    pub(super) error: f64,
}

impl Combination {
    /// The combination of rows, as long as what it stands for is wide, and its error by the row itself.
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

/// A row minus the sum of shared rows times their factors, in f64.
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

/// A way to find combinations.
pub(super) trait Solver: Sync {
    /// A combination of shared rows for each target, none of them `excluded`; an empty one for a target that is zero.
    fn block(&self, targets: &Rows, excluded: &[bool]) -> Result<Vec<Combination>>;
}
