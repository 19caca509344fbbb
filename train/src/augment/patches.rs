//! Draws the patches of an image that a model has to guess.

use merge::random::Sequence;

/// The most draws of a block that does not fit.
const N_ATTEMPTS: usize = 10;

/// Masks patches in rectangular blocks, until `n_masked` are masked.
///
/// A block's area is uniform between `least` and what remains, its aspect ratio uniform in the
/// logarithm; it counts only if both sides are smaller than the grid's and it masks at least one
/// new patch and no more than remain. After ten blocks in a row that do not count, the rest stays
/// unmasked.
///
/// Bao et al. 2021, "BEiT", <https://arxiv.org/abs/2106.08254>, algorithm 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchMasking {
    /// Patches in a row, and rows.
    pub side: usize,
    /// Patches to be masked.
    pub n_masked: usize,
    /// The least area of a block, in patches.
    pub least: usize,
    /// The least aspect ratio, height by width; the largest is one by it.
    pub aspect: f64,
}

impl PatchMasking {
    /// For a grid of `side` by `side`, with the published settings: 75 of 196 patches in blocks of
    /// at least 16, and the same shares of other grids.
    #[must_use]
    pub fn new(side: usize) -> Self {
        Self {
            side,
            n_masked: (75 * side * side).div_ceil(196),
            least: (16 * side * side).div_ceil(196),
            aspect: 0.3,
        }
    }

    /// The same with another share of the patches masked.
    #[must_use]
    pub fn with_share(self, share: f64) -> Self {
        Self {
            n_masked: (share * (self.side * self.side) as f64).round() as usize,
            ..self
        }
    }

    /// The masked patches, row by row: 1 for a masked one, else 0.
    #[must_use]
    pub fn draw(&self, draws: &mut Sequence) -> Vec<u8> {
        let mut masked = vec![0; self.side * self.side];
        let mut remaining = self.n_masked;
        while remaining > 0 {
            let Some(n_new) = self.add_block(&mut masked, remaining, draws) else {
                break;
            };
            remaining -= n_new;
        }
        masked
    }

    /// Masks one more block; how many patches it has added.
    fn add_block(
        &self,
        masked: &mut [u8],
        remaining: usize,
        draws: &mut Sequence,
    ) -> Option<usize> {
        let widest = -self.aspect.ln();
        for _ in 0..N_ATTEMPTS {
            // With less than `least` remaining the area lies between the two all the same.
            let area = draws.between(self.least as f64, remaining as f64);
            let aspect = draws.between(-widest, widest).exp();
            let height = (area * aspect).sqrt().round_ties_even() as usize;
            let width = (area / aspect).sqrt().round_ties_even() as usize;
            if height >= self.side || width >= self.side {
                continue;
            }
            let top = draws.below(self.side - height + 1);
            let left = draws.below(self.side - width + 1);
            let rows = top..top + height;
            let places = rows.flat_map(|row| {
                let first = row * self.side + left;
                first..first + width
            });
            let n_new = places.clone().filter(|&place| masked[place] == 0).count();
            if (1..=remaining).contains(&n_new) {
                places.for_each(|place| masked[place] = 1);
                return Some(n_new);
            }
        }
        None
    }
}
