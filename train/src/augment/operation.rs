//! Operations on pictures.

use evaluate::images::Rgb;
use merge::random::Sequence;

use super::color::{auto_contrast, brightness, equalize, sharpness};
use super::geometry::{Affine, warp};

/// The largest magnitude.
pub const MAX_MAGNITUDE: f64 = 10.0;

/// The color of places outside of a picture.
const FILL: [u8; 3] = [128; 3];

/// Slips of published programs that a recipe may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slips {
    /// Values of [`Operation::Sharpness`] that exceed a byte wrap around instead of being clipped, as in
    /// vl-merging, VLMo and EVE.
    pub sharpness_wraps: bool,
    /// [`Operation::AutoContrast`] makes a channel without a 0 white, as in EVE.
    pub auto_contrast_whitens: bool,
}

impl Slips {
    /// Those of EVE's published program.
    pub const EVE: Self = Self {
        sharpness_wraps: true,
        auto_contrast_whitens: true,
    };
}

/// An operation on a picture, with a strength that goes with the magnitude `m` of 0 to 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Nothing.
    Identity,
    /// Each channel is stretched to 0 to 255.
    AutoContrast,
    /// The values of each channel become equally frequent.
    Equalize,
    /// All values times `1.8 m/10 + 0.1`.
    Brightness,
    /// Away from a blurred copy by the same factor.
    Sharpness,
    /// Rows move by ± `0.3 m/10` of their number.
    ShearX,
    /// Columns move by ± `0.3 m/10` of their number.
    ShearY,
    /// All columns move by ± `m` pixels.
    TranslateX,
    /// All rows move by ± `m` pixels.
    TranslateY,
    /// About the center by ± `3 m` degrees.
    Rotate,
}

impl Operation {
    /// All of them, as published recipes draw from.
    pub const ALL: [Self; 10] = [
        Self::Identity,
        Self::AutoContrast,
        Self::Equalize,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Rotate,
    ];

    /// Whether the sign of its strength is drawn.
    #[must_use]
    pub fn has_sign(self) -> bool {
        use Operation::{Rotate, ShearX, ShearY, TranslateX, TranslateY};
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate)
    }

    /// Its strength at a magnitude, without a sign; 0 for operations without one.
    #[must_use]
    pub fn strength(self, magnitude: f64) -> f64 {
        let share = magnitude / MAX_MAGNITUDE;
        match self {
            Self::Identity | Self::AutoContrast | Self::Equalize => 0.0,
            Self::Brightness | Self::Sharpness => share * 1.8 + 0.1,
            Self::ShearX | Self::ShearY => share * 0.3,
            Self::TranslateX | Self::TranslateY => share * 10.0,
            Self::Rotate => share * 30.0,
        }
    }

    /// Does it, with a strength that may be negative where it [has a sign](Self::has_sign).
    pub fn apply(self, picture: &mut Rgb, strength: f64, slips: Slips) {
        match self {
            Self::Identity => {}
            Self::AutoContrast => auto_contrast(picture, slips.auto_contrast_whitens),
            Self::Equalize => equalize(picture),
            Self::Brightness => brightness(picture, strength),
            Self::Sharpness => sharpness(picture, strength, slips.sharpness_wraps),
            Self::ShearX => warp(picture, Affine::shear_x(strength), FILL),
            Self::ShearY => warp(picture, Affine::shear_y(strength), FILL),
            Self::TranslateX => warp(picture, Affine::translate_x(strength), FILL),
            Self::TranslateY => warp(picture, Affine::translate_y(strength), FILL),
            Self::Rotate => {
                let map = Affine::rotate(strength, picture);
                warp(picture, map, FILL);
            }
        }
    }

    /// The strength at a magnitude, with a sign drawn where it has one.
    pub(super) fn drawn_strength(self, magnitude: f64, draws: &mut Sequence) -> f64 {
        let strength = self.strength(magnitude);
        match self.has_sign() && draws.chance(0.5) {
            true => -strength,
            false => strength,
        }
    }
}
