//! RandAugment.

use evaluate::images::Rgb;
use merge::random::Sequence;

use super::{Operation, Slips};

/// Some operations one after the other, each drawn from all of them with replacement and done with
/// a probability.
///
/// Cubuk et al. 2019, "RandAugment", <https://arxiv.org/abs/1909.13719>, in the variant of the
/// published vl-merging and VLMo programs.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomAugment {
    /// The number of operations drawn.
    pub n_operations: usize,
    /// Their strength, 0 to 10.
    pub magnitude: f64,
    /// The probability that a drawn operation is done.
    pub probability: f64,
    /// The operations to draw from.
    pub operations: Vec<Operation>,
    /// Slips of published programs that are done alike; none as a rule.
    pub slips: Slips,
}

impl Default for RandomAugment {
    /// Two of all ten at a magnitude of 7, each done half of the times.
    fn default() -> Self {
        Self {
            n_operations: 2,
            magnitude: 7.0,
            probability: 0.5,
            operations: Operation::ALL.to_vec(),
            slips: Slips::default(),
        }
    }
}

impl RandomAugment {
    /// Draws operations with strengths: all operations first, then for each whether it is done, and its sign.
    #[must_use]
    pub fn draw(&self, draws: &mut Sequence) -> Vec<(Operation, f64)> {
        let n = self.operations.len();
        let drawn: Vec<Operation> = (0..self.n_operations)
            .filter_map(|_| self.operations.get(draws.below(n)).copied())
            .collect();
        drawn
            .into_iter()
            .filter_map(|operation| {
                let is_done = draws.chance(self.probability);
                is_done.then(|| (operation, operation.drawn_strength(self.magnitude, draws)))
            })
            .collect()
    }

    /// Draws and does it.
    pub fn apply(&self, picture: &mut Rgb, draws: &mut Sequence) {
        for (operation, strength) in self.draw(draws) {
            operation.apply(picture, strength, self.slips);
        }
    }
}
