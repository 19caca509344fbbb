//! Boxes of a picture that are erased.

use merge::random::{Draws, Sequence};
use serde::{Deserialize, Serialize};

/// The most draws of a box that does not fit.
const N_ATTEMPTS: usize = 10;

/// The content of an erased box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasedWith {
    /// Zeros.
    Const,
    /// One normal number for each channel.
    Rand,
    /// A normal number for each value.
    #[default]
    Pixel,
}

/// Erases boxes of a normalized picture.
///
/// Zhong et al. 2017, "Random Erasing", <https://arxiv.org/abs/1708.04896>, as timm does it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomErasing {
    /// The probability of a change.
    pub probability: f64,
    /// The content of a box.
    pub mode: ErasedWith,
    /// The most boxes of a picture; from 1 to as many are drawn.
    pub count: usize,
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self {
            probability: 0.0,
            mode: ErasedWith::Pixel,
            count: 1,
        }
    }
}

/// Rows and columns of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasedBox {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ErasedBox {
    /// Height and width of a box of this area in pixels, and of this ratio of height to width, both
    /// rounded, halves to the even number.
    #[must_use]
    pub fn size(area: f64, aspect: f64) -> (usize, usize) {
        let height = (area * aspect).sqrt().round_ties_even();
        let width = (area / aspect).sqrt().round_ties_even();
        (height as usize, width as usize)
    }

    /// Sets what the box covers in `values: (channels, side, side)`, asking for each value by channel
    /// and number within the box.
    pub fn fill(self, values: &mut [f32], side: usize, value: impl Fn(usize, usize) -> f32) {
        for (channel, plane) in values.chunks_exact_mut(side * side).enumerate() {
            for row in 0..self.height {
                let from = (self.top + row) * side + self.left;
                for (column, to) in plane[from..from + self.width].iter_mut().enumerate() {
                    *to = value(channel, row * self.width + column);
                }
            }
        }
    }
}

impl RandomErasing {
    /// Changes a normalized picture, `(3, side, side)`, or not. `noise` is what numbers are drawn from.
    pub fn apply(&self, values: &mut [f32], side: usize, draws: &mut Sequence, noise: &Draws) {
        if !draws.chance(self.probability) {
            return;
        }
        let count = 1 + draws.below(self.count.max(1));
        for index in 0..count {
            let Some(erased) = draw(side, count, draws) else {
                continue;
            };
            let n = erased.height * erased.width;
            let mut normal = vec![0.0; 3 * n];
            let first = index * 3 * side * side;
            match self.mode {
                ErasedWith::Const => {}
                ErasedWith::Rand => noise.add_normal(1.0, first, &mut normal[..3.min(3 * n)]),
                ErasedWith::Pixel => noise.add_normal(1.0, first, &mut normal),
            }
            let mode = self.mode;
            erased.fill(values, side, |channel, at| match mode {
                ErasedWith::Const => 0.0,
                ErasedWith::Rand => normal[channel],
                ErasedWith::Pixel => normal[channel * n + at],
            });
        }
    }
}

/// One box of `count`; `None` when ten in a row do not fit.
fn draw(side: usize, count: usize, draws: &mut Sequence) -> Option<ErasedBox> {
    let whole = (side * side) as f64;
    for _ in 0..N_ATTEMPTS {
        let area = draws.between(0.02, 1.0 / 3.0) * whole / count as f64;
        let widest = (1.0_f64 / 0.3).ln();
        let aspect = draws.between(-widest, widest).exp();
        let (height, width) = ErasedBox::size(area, aspect);
        if height > 0 && width > 0 && height < side && width < side {
            return Some(ErasedBox {
                top: draws.below(side - height + 1),
                left: draws.below(side - width + 1),
                height,
                width,
            });
        }
    }
    None
}
