//! RandAugment's operations in Pillow, as METER and FLM draw them.

use evaluate::images::Rgb;
use merge::random::Sequence;
use serde::Serialize;

use super::affine::{rotate_on_black, shear_nearest, translate};
use super::blend::{brighten, contrast, posterize, saturate, sharpen, solarize};
use super::color::{auto_contrast, equalize};

/// An operation of RandAugment, as Pillow does it.
///
/// Cubuk et al. 2019, "RandAugment", <https://arxiv.org/abs/1909.13719>, with the ranges of the published
/// FLM program. Rotating, sliding and moving take the nearest pixel, and fill up with black; enhancing is
/// always towards the plainer picture below a strength of a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distortion {
    /// Each channel is stretched to 0 to 255.
    AutoContrast,
    /// The values of each channel become equally frequent.
    Equalize,
    /// Turned by up to 30 degrees.
    Rotate,
    /// Keeps up to four bits a value, and at least one.
    Posterize,
    /// Values from up to 256 on are inverted.
    Solarize,
    /// Up to 110 are added, then values from 128 on are inverted.
    SolarizeAdd,
    /// More or less color, a factor from 0.1 to 1.9.
    Color,
    /// More or less contrast, likewise.
    Contrast,
    /// Brighter or darker, likewise.
    Brightness,
    /// More or less sharp, likewise.
    Sharpness,
    /// Rows slide by up to 0.3 of their number.
    ShearX,
    /// Columns likewise.
    ShearY,
    /// All moves by up to 100 pixels along rows.
    TranslateX,
    /// The same along columns.
    TranslateY,
}

/// All of them; each is drawn alike.
pub const DISTORTIONS: [Distortion; 14] = {
    use Distortion::{AutoContrast, Brightness, Color, Contrast, Equalize, Posterize, Rotate};
    use Distortion::{Sharpness, ShearX, ShearY, Solarize, SolarizeAdd, TranslateX, TranslateY};
    [
        AutoContrast,
        Equalize,
        Rotate,
        Posterize,
        Solarize,
        SolarizeAdd,
        Color,
        Contrast,
        Brightness,
        Sharpness,
        ShearX,
        ShearY,
        TranslateX,
        TranslateY,
    ]
};

impl Distortion {
    /// Draws one.
    pub fn draw(draws: &mut Sequence) -> Self {
        DISTORTIONS[draws.below(DISTORTIONS.len())]
    }

    /// The value of the operation at a strength from 0 to 1: degrees, bits, thresholds, factors, shares or pixels; 0
    /// for operations without a strength.
    #[must_use]
    pub fn value(self, strength: f64) -> f64 {
        let [least, most] = match self {
            Self::AutoContrast | Self::Equalize => [0.0, 0.0],
            Self::Rotate => [0.0, 30.0],
            Self::Posterize => [0.0, 4.0],
            Self::Solarize => [0.0, 256.0],
            Self::SolarizeAdd => [0.0, 110.0],
            Self::Color | Self::Contrast | Self::Brightness | Self::Sharpness => [0.1, 1.9],
            Self::ShearX | Self::ShearY => [0.0, 0.3],
            Self::TranslateX | Self::TranslateY => [0.0, 100.0],
        };
        strength * (most - least) + least
    }

    /// Does it at a strength from 0 to 1. A sign counts where the picture is moved.
    pub fn apply(self, picture: &mut Rgb, strength: f64, is_negative: bool) {
        let value = self.value(strength);
        let signed = if is_negative { -value } else { value };
        match self {
            Self::AutoContrast => auto_contrast(picture, false),
            Self::Equalize => equalize(picture),
            Self::Rotate => rotate_on_black(picture, signed),
            Self::Posterize => posterize(picture, (value as u32).max(1)),
            Self::Solarize => solarize(picture, value),
            Self::SolarizeAdd => {
                for pixel in &mut picture.pixels {
                    *pixel = pixel.saturating_add(value as u8);
                }
                solarize(picture, 128.0);
            }
            Self::Color => saturate(picture, value),
            Self::Contrast => contrast(picture, value),
            Self::Brightness => brighten(picture, value),
            Self::Sharpness => sharpen(picture, value),
            Self::ShearX => shear_nearest(picture, [signed, 0.0]),
            Self::ShearY => shear_nearest(picture, [0.0, signed]),
            Self::TranslateX => translate(picture, [signed, 0.0]),
            Self::TranslateY => translate(picture, [0.0, signed]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_are_those_of_the_published_magnitude_of_nine() {
        let values = DISTORTIONS.map(|distortion| distortion.value(9.0 / 30.0));
        let expected = [
            0.0, 0.0, 9.0, 1.2, 76.8, 33.0, 0.64, 0.64, 0.64, 0.64, 0.09, 0.09, 30.0, 30.0,
        ];
        for (found, expected) in values.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn values_are_kept_added_and_inverted_as_pillow_does() {
        let picture = |value: u8| Rgb {
            width: 1,
            height: 1,
            pixels: vec![value; 3],
            alpha: None,
        };
        let after = |distortion: Distortion, value: u8| {
            let mut picture = picture(value);
            distortion.apply(&mut picture, 0.3, false);
            picture.pixels[0]
        };
        // One bit; from 76.8 on; 90 + 33 stays below 128, 100 + 33 becomes 255 - 133.
        assert_eq!(after(Distortion::Posterize, 200), 128);
        assert_eq!([76, 77].map(|v| after(Distortion::Solarize, v)), [76, 178]);
        assert_eq!(
            [90, 100, 250].map(|v| after(Distortion::SolarizeAdd, v)),
            [123, 122, 0]
        );
        assert_eq!(after(Distortion::Brightness, 100), 64);
    }

    #[test]
    fn what_moves_leaves_black_behind() {
        let mut picture = Rgb {
            width: 120,
            height: 1,
            pixels: vec![9; 360],
            alpha: None,
        };
        Distortion::TranslateX.apply(&mut picture, 0.3, true);
        // Each pixel comes from 30 to its left.
        let black = picture.pixels.iter().filter(|&&value| value == 0).count();
        assert_eq!(
            (black, picture.pixel(29, 0), picture.pixel(30, 0)),
            (90, Some([0; 3]), Some([9; 3]))
        );
    }
}
