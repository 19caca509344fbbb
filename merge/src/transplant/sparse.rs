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
    /// The length of the rest, as a share of the row's.
    pub(super) error: f64,
}

impl Combination {
    /// The combination of rows, as long as what it stands for is wide, and its error by the row itself.
    pub(super) fn measured(mut self, points: &Rows, target: &[f32]) -> Self {
        let mut rest: Vec<f64> = target.iter().map(|value| f64::from(*value)).collect();
        for (&atom, factor) in self.atoms.iter().zip(&self.factors) {
            for (rest, value) in rest.iter_mut().zip(points.row(atom as usize)) {
                *rest -= factor * f64::from(*value);
            }
        }
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

/// A way to find combinations.
pub(super) trait Solver: Sync {
    /// A combination of shared rows for each target, none of them `excluded`; an empty one for a target that is zero.
    fn block(&self, targets: &Rows, excluded: &[bool]) -> Result<Vec<Combination>>;
}
