//! AutoAugment's policy for ImageNet.

use evaluate::images::Rgb;
use merge::random::Sequence;
use serde::Serialize;

use super::affine::{rotate, shear_x, shear_y, translate_x, translate_y};
use super::blend::{brighten, contrast, invert, posterize, saturate, sharpen, solarize};
use super::color::{auto_contrast, equalize};

/// An operation of AutoAugment, as Pillow does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Rows slide, bicubic.
    ShearX,
    /// Columns slide, bicubic.
    ShearY,
    /// All slides by a share of the width.
    TranslateX,
    /// All slides by a share of the height.
    TranslateY,
    /// Counter-clockwise.
    Rotate,
    /// More or less color.
    Color,
    /// Fewer bits a value.
    Posterize,
    /// Bright values are inverted.
    Solarize,
    /// More or less contrast.
    Contrast,
    /// More or less sharp.
    Sharpness,
    /// Brighter or darker.
    Brightness,
    /// Each channel is stretched to 0 to 255.
    AutoContrast,
    /// The values of each channel become equally frequent.
    Equalize,
    /// The negative.
    Invert,
}

/// Bits that [`Change::Posterize`] keeps, by index of the magnitude.
const BITS: [u32; 10] = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4];

/// The largest index of a magnitude.
const LAST: f64 = 9.0;

impl Change {
    /// Whether the sign of its magnitude is drawn. Rotations have none: they all go one way, as in the
    /// published program.
    #[must_use]
    pub fn has_sign(self) -> bool {
        use Change::{Brightness, Color, Contrast, Sharpness};
        use Change::{ShearX, ShearY, TranslateX, TranslateY};
        matches!(
            self,
            ShearX | ShearY | TranslateX | TranslateY | Color | Contrast | Sharpness | Brightness
        )
    }

    /// The magnitude of an index from 0 to 9: shares, degrees, bits, or the difference of a factor to 1;
    /// 0 for operations without one.
    #[must_use]
    pub fn magnitude(self, index: usize) -> f64 {
        let share = index as f64 / LAST;
        match self {
            Self::ShearX | Self::ShearY => 0.3 * share,
            Self::TranslateX | Self::TranslateY => 150.0 / 331.0 * share,
            Self::Rotate => 30.0 * share,
            Self::Color | Self::Contrast | Self::Sharpness | Self::Brightness => 0.9 * share,
            Self::Posterize => f64::from(BITS.get(index).copied().unwrap_or(4)),
            Self::Solarize => 256.0 - 256.0 * share,
            Self::AutoContrast | Self::Equalize | Self::Invert => 0.0,
        }
    }

    /// Does it at an index of the magnitude, and with a sign where it [has one](Self::has_sign).
    pub fn apply(self, picture: &mut Rgb, index: usize, is_negative: bool) {
        let magnitude = self.magnitude(index);
        let signed = if is_negative { -magnitude } else { magnitude };
        match self {
            Self::ShearX => shear_x(picture, signed),
            Self::ShearY => shear_y(picture, signed),
            Self::TranslateX => translate_x(picture, signed),
            Self::TranslateY => translate_y(picture, signed),
            Self::Rotate => rotate(picture, magnitude),
            Self::Color => saturate(picture, 1.0 + signed),
            Self::Posterize => posterize(picture, magnitude as u32),
            Self::Solarize => solarize(picture, magnitude),
            Self::Contrast => contrast(picture, 1.0 + signed),
            Self::Sharpness => sharpen(picture, 1.0 + signed),
            Self::Brightness => brighten(picture, 1.0 + signed),
            Self::AutoContrast => auto_contrast(picture, false),
            Self::Equalize => equalize(picture),
            Self::Invert => invert(picture),
        }
    }
}

/// An operation, how likely it is done, and the index of its magnitude.
pub type Choice = (Change, f64, usize);

/// Pairs of operations, of which one is drawn for each picture.
///
/// Cubuk et al. 2018, "AutoAugment", <https://arxiv.org/abs/1805.09501>, table 9, in the spelling of
/// the published ZeroVL program.
pub const POLICY: [[Choice; 2]; 25] = {
    use Change::{AutoContrast, Color, Contrast, Equalize, Invert, Posterize};
    use Change::{Rotate, Sharpness, ShearX, Solarize};
    [
        [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 5)],
        [(Equalize, 0.8, 8), (Equalize, 0.6, 3)],
        [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
        [(Equalize, 0.4, 7), (Solarize, 0.2, 4)],
        [(Equalize, 0.4, 4), (Rotate, 0.8, 8)],
        [(Solarize, 0.6, 3), (Equalize, 0.6, 7)],
        [(Posterize, 0.8, 5), (Equalize, 1.0, 2)],
        [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
        [(Equalize, 0.6, 8), (Posterize, 0.4, 6)],
        [(Rotate, 0.8, 8), (Color, 0.4, 0)],
        [(Rotate, 0.4, 9), (Equalize, 0.6, 2)],
        [(Equalize, 0.0, 7), (Equalize, 0.8, 8)],
        [(Invert, 0.6, 4), (Equalize, 1.0, 8)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Rotate, 0.8, 8), (Color, 1.0, 2)],
        [(Color, 0.8, 8), (Solarize, 0.8, 7)],
        [(Sharpness, 0.4, 7), (Invert, 0.6, 8)],
        [(ShearX, 0.6, 5), (Equalize, 1.0, 9)],
        [(Color, 0.4, 0), (Equalize, 0.6, 3)],
        [(Equalize, 0.4, 7), (Solarize, 0.2, 4)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 5)],
        [(Invert, 0.6, 4), (Equalize, 1.0, 8)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Equalize, 0.8, 8), (Equalize, 0.6, 3)],
    ]
};

/// Draws a pair of the policy, and which operations of it are done: each with the index of its magnitude,
/// and whether its sign is negative.
#[must_use]
pub fn draw_policy(draws: &mut Sequence) -> Vec<(Change, usize, bool)> {
    let pair = POLICY.get(draws.below(POLICY.len()));
    let mut drawn = Vec::new();
    for &(change, probability, index) in pair.into_iter().flatten() {
        if draws.chance(probability) {
            let is_negative = change.has_sign() && draws.chance(0.5);
            drawn.push((change, index, is_negative));
        }
    }
    drawn
}
