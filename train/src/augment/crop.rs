//! A random part of a picture.

use evaluate::images::{Part, Rgb};
use merge::random::Sequence;

/// The most draws of a part that does not fit into the picture.
const N_ATTEMPTS: usize = 10;

/// Draws a part of a picture: its share of the area uniform, its aspect ratio (width by height)
/// uniform in the logarithm, its place uniform. If ten in a row do not fit, it is the largest
/// part in the center whose aspect ratio is allowed.
///
/// Szegedy et al. 2014, "Going deeper with convolutions", <https://arxiv.org/abs/1409.4842>,
/// section 6, as torchvision's `RandomResizedCrop` does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomCrop {
    /// The least and the largest share of the area.
    pub area: [f64; 2],
    /// The least and the largest aspect ratio.
    pub aspect: [f64; 2],
}

impl Default for RandomCrop {
    /// From half of the area, 3:4 to 4:3.
    fn default() -> Self {
        Self {
            area: [0.5, 1.0],
            aspect: [3.0 / 4.0, 4.0 / 3.0],
        }
    }
}

impl RandomCrop {
    /// A part of a picture.
    #[must_use]
    pub fn draw(&self, picture: &Rgb, draws: &mut Sequence) -> Part {
        self.draw_in((picture.width, picture.height), draws)
    }

    /// A part of a picture of this width and height.
    #[must_use]
    pub fn draw_in(&self, (width, height): (usize, usize), draws: &mut Sequence) -> Part {
        let whole = (width * height) as f64;
        let [narrow, wide] = self.aspect;
        for _ in 0..N_ATTEMPTS {
            let area = whole * draws.between(self.area[0], self.area[1]);
            let aspect = draws.between(narrow.ln(), wide.ln()).exp();
            let part_width = (area * aspect).sqrt().round_ties_even() as usize;
            let part_height = (area / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&part_width) && (1..=height).contains(&part_height) {
                return Part {
                    top: draws.below(height - part_height + 1),
                    left: draws.below(width - part_width + 1),
                    width: part_width,
                    height: part_height,
                };
            }
        }
        self.center(width, height)
    }

    fn center(&self, width: usize, height: usize) -> Part {
        let [narrow, wide] = self.aspect;
        let (mut part_width, mut part_height) = (width, height);
        let aspect = width as f64 / height as f64;
        if aspect < narrow {
            part_height = (width as f64 / narrow).round_ties_even() as usize;
        } else if aspect > wide {
            part_width = (height as f64 * wide).round_ties_even() as usize;
        }
        let (part_width, part_height) = (part_width.min(width), part_height.min(height));
        Part {
            left: (width - part_width) / 2,
            top: (height - part_height) / 2,
            width: part_width,
            height: part_height,
        }
    }
}
