//! Changes pictures by steps whose draws are made.

use evaluate::images::{Filter, Margins, Part, Passes, Resampler, Rgb, center};
use serde::Serialize;

use super::blend::{brighten, contrast, saturate, to_gray};
use super::hue::turn_hue;
use super::{Change, Distortion, gaussian_blur, mirror};

/// A change of one picture. It gives the same result for the same picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureChange {
    /// Resized; the aspect ratio is not kept.
    Resized {
        /// Columns afterwards.
        width: usize,
        /// Rows afterwards.
        height: usize,
        /// The filter of its samples.
        filter: Filter,
    },
    /// The middle, a square of this side; a smaller picture is filled up with black.
    Center(usize),
    /// Black around it, so that no side is shorter than this.
    Padded(usize),
    /// A part of it.
    Cut(Part),
    /// Left and right change places.
    Mirrored,
    /// Times this factor.
    Brightness(f64),
    /// Away from its mean gray by this factor.
    Contrast(f64),
    /// Away from its grays by this factor.
    Saturation(f64),
    /// The hue turned by this share of the circle.
    Hue(f64),
    /// Without color.
    Gray,
    /// Blurred by a Gaussian of this deviation in pixels.
    Blurred(f64),
    /// An operation of AutoAugment.
    Policy {
        /// The change.
        change: Change,
        /// The index of its magnitude.
        index: usize,
        /// The sign of its magnitude, where it has one.
        is_negative: bool,
    },
    /// An operation of RandAugment.
    Distorted {
        /// The distortion.
        distortion: Distortion,
        /// From 0 to 1.
        strength: f64,
        /// The sign, where the picture is moved.
        is_negative: bool,
    },
}

impl PictureChange {
    /// Resized to a square, bilinear.
    pub(super) fn square(side: usize) -> Self {
        Self::Resized {
            width: side,
            height: side,
            filter: Filter::Bilinear,
        }
    }

    /// The picture afterwards.
    #[must_use]
    pub fn apply(&self, mut picture: Rgb) -> Rgb {
        match *self {
            Self::Resized {
                width,
                height,
                filter,
            } => return resized(&picture, (width, height), filter),
            Self::Center(side) => return center(&picture, side, Margins::Even),
            Self::Padded(side) => return padded(picture, side),
            Self::Cut(part) => return cut_out(&picture, part.within(&picture)),
            Self::Mirrored => mirror(&mut picture),
            Self::Brightness(factor) => brighten(&mut picture, factor),
            Self::Contrast(factor) => contrast(&mut picture, factor),
            Self::Saturation(factor) => saturate(&mut picture, factor),
            Self::Hue(share) => turn_hue(&mut picture, share),
            Self::Gray => to_gray(&mut picture),
            Self::Blurred(deviation) => gaussian_blur(&mut picture, deviation),
            Self::Policy {
                change,
                index,
                is_negative,
            } => change.apply(&mut picture, index, is_negative),
            Self::Distorted {
                distortion,
                strength,
                is_negative,
            } => distortion.apply(&mut picture, strength, is_negative),
        }
        picture
    }
}

/// A part of a picture, resized to a square, bilinear.
#[must_use]
pub fn resized_part(picture: &Rgb, part: Part, side: usize) -> Rgb {
    let cut = cut_out(picture, part.within(picture));
    resized(&cut, (side, side), Filter::Bilinear)
}

/// As Pillow 13 resizes, bit by bit.
fn resized(picture: &Rgb, to: (usize, usize), filter: Filter) -> Rgb {
    let from = (picture.width, picture.height);
    let resampler = Resampler::with_filter(from, to, filter);
    resampler.in_passes(Passes::LessFirst).resize(picture)
}

/// The part as a picture of its own.
fn cut_out(picture: &Rgb, part: Part) -> Rgb {
    let mut pixels = Vec::with_capacity(3 * part.width * part.height);
    for row in part.top..part.top + part.height {
        let from = 3 * (row * picture.width + part.left);
        pixels.extend_from_slice(&picture.pixels[from..from + 3 * part.width]);
    }
    Rgb {
        width: part.width,
        height: part.height,
        pixels,
        alpha: None,
    }
}

/// A picture with black around it, so that no side is shorter than `side`.
fn padded(picture: Rgb, side: usize) -> Rgb {
    let (width, height) = (picture.width.max(side), picture.height.max(side));
    if (width, height) == (picture.width, picture.height) {
        return picture;
    }
    let (left, top) = ((width - picture.width) / 2, (height - picture.height) / 2);
    let mut pixels = vec![0; 3 * width * height];
    let rows = picture.pixels.chunks_exact(3 * picture.width.max(1));
    for (row, from) in rows.enumerate() {
        let to = 3 * ((top + row) * width + left);
        pixels[to..to + from.len()].copy_from_slice(from);
    }
    Rgb {
        width,
        height,
        pixels,
        alpha: None,
    }
}
