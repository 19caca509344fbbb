//! A list of what is done to a picture, as ZeroVL's recipes write it.

use evaluate::images::{Filter, Margins, Part, Resampler, Rgb, center};
use merge::random::Sequence;
use serde::{Deserialize, Serialize};

use super::blend::{brighten, contrast, saturate, to_gray};
use super::distortion::Distortion;
use super::hue::turn_hue;
use super::{RandomCrop, auto_augment, gaussian_blur, mirror};

/// One step. Sizes are in pixels, of a square's side unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PictureStep {
    /// Resized to a square, bilinear; the aspect ratio is not kept.
    Resize {
        /// Side of the square.
        size: usize,
    },
    /// Resized so that the shorter side has this size, bicubic.
    ResizeBicubic {
        /// The shorter side.
        size: usize,
    },
    /// The middle; a smaller picture is filled up with black.
    CenterCrop {
        /// Side of the square.
        size: usize,
    },
    /// Any square; a smaller picture is filled up with black.
    RandomCrop {
        /// Side of the square.
        size: usize,
    },
    /// A part of a random size, place and aspect ratio from 3:4 to 4:3, resized bilinear.
    RandomResizeCrop {
        /// Side of the square.
        size: usize,
        /// The least and the largest share of the area.
        #[serde(default = "published_scale")]
        scale: [f64; 2],
    },
    /// Mirrored half of the times.
    RandomFlip,
    /// AutoAugment's policy for ImageNet.
    Autoaug,
    /// RandAugment with Pillow's operations, as METER and FLM have it.
    Randaug {
        /// Operations that are drawn for each picture; one may be drawn twice.
        operations: usize,
        /// Their strength, from 0 to 30.
        magnitude: f64,
    },
    /// Brightness, contrast and saturation, each times a factor from `1 - strength` to `1 + strength`,
    /// in random order.
    ColorJitter {
        /// The largest difference of a factor to 1.
        strength: f64,
    },
    /// SimCLR's: brightness, contrast, saturation and hue with a probability of 0.8, then gray with 0.2.
    ColorDistortion {
        /// Factor on 0.8, 0.8, 0.8 and 0.2.
        strength: f64,
    },
    /// Blurred by a Gaussian.
    GaussianBlur {
        /// How likely.
        p: f64,
        /// The least deviation in pixels.
        radius_min: f64,
        /// The largest.
        radius_max: f64,
    },
}

fn published_scale() -> [f64; 2] {
    [0.6, 1.0]
}

/// What a step gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// A square of this side.
    Square(usize),
    /// Whatever there was.
    Any,
}

impl PictureStep {
    /// The side of the square that a list of steps ends with; `None` when it ends with none.
    #[must_use]
    pub fn side(steps: &[Self]) -> Option<usize> {
        let last = steps.iter().fold(Size::Any, |size, step| match *step {
            Self::Resize { size }
            | Self::CenterCrop { size }
            | Self::RandomCrop { size }
            | Self::RandomResizeCrop { size, .. } => Size::Square(size),
            Self::ResizeBicubic { size: shorter } => match size {
                Size::Square(_) => Size::Square(shorter),
                Size::Any => Size::Any,
            },
            _ => size,
        });
        match last {
            Size::Square(side) => Some(side),
            Size::Any => None,
        }
    }

    /// What is wrong with its numbers, as a clause.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let at_least_0 = |x: f64| x.is_finite() && x >= 0.0;
        match *self {
            Self::Resize { size: 0 }
            | Self::ResizeBicubic { size: 0 }
            | Self::CenterCrop { size: 0 }
            | Self::RandomCrop { size: 0 }
            | Self::RandomResizeCrop { size: 0, .. } => Some("`size` is 0".into()),
            Self::RandomResizeCrop {
                scale: [least, most],
                ..
            } if !(least > 0.0 && least <= most && most <= 1.0) => Some(format!(
                "`scale` is [{least}, {most}], which is no range of shares above 0 and up to 1"
            )),
            Self::ColorJitter { strength } | Self::ColorDistortion { strength }
                if !at_least_0(strength) =>
            {
                Some(format!("`strength` is {strength}, which is not 0 or more"))
            }
            Self::ColorDistortion { strength } if strength > 2.5 => Some(format!(
                "`strength` is {strength}: with more than 2.5 the hue turns by more than half a circle"
            )),
            Self::Randaug { magnitude, .. } if !(0.0..=30.0).contains(&magnitude) => Some(format!(
                "`magnitude` is {magnitude}, which is not from 0 to 30"
            )),
            Self::GaussianBlur {
                p,
                radius_min,
                radius_max,
            } if !((0.0..=1.0).contains(&p)
                && at_least_0(radius_min)
                && at_least_0(radius_max)
                && radius_min <= radius_max) =>
            {
                Some(format!(
                    "`p` is {p} and the radius from {radius_min} to {radius_max}; `p` is a share, and radii grow from 0"
                ))
            }
            _ => None,
        }
    }

    /// The picture after this step.
    #[must_use]
    pub fn apply(&self, mut picture: Rgb, draws: &mut Sequence) -> Rgb {
        let from = (picture.width, picture.height);
        match *self {
            Self::Resize { size } => resized(&picture, (size, size), Filter::Bilinear),
            Self::ResizeBicubic { size } => {
                let longer = |long: usize, short: usize| (size * long / short.max(1)).max(1);
                let to = match from.0 <= from.1 {
                    true => (size, longer(from.1, from.0)),
                    false => (longer(from.0, from.1), size),
                };
                resized(&picture, to, Filter::Bicubic)
            }
            Self::CenterCrop { size } => center(&picture, size, Margins::Even),
            Self::RandomCrop { size } => {
                let padded = padded(picture, size);
                let part = Part {
                    top: draws.below(padded.height - size + 1),
                    left: draws.below(padded.width - size + 1),
                    width: size,
                    height: size,
                };
                cut_out(&padded, part)
            }
            Self::RandomResizeCrop { size, scale } => {
                let crop = RandomCrop {
                    area: scale,
                    ..RandomCrop::default()
                };
                let part = crop.draw(&picture, draws);
                resized_part(&picture, part, size)
            }
            Self::RandomFlip => {
                if draws.chance(0.5) {
                    mirror(&mut picture);
                }
                picture
            }
            Self::Autoaug => {
                auto_augment(&mut picture, draws);
                picture
            }
            Self::Randaug {
                operations,
                magnitude,
            } => {
                for _ in 0..operations {
                    Distortion::draw(draws).apply(
                        &mut picture,
                        magnitude / 30.0,
                        draws.chance(0.5),
                    );
                }
                picture
            }
            Self::ColorJitter { strength } => {
                jitter(&mut picture, [strength, strength, strength, 0.0], draws);
                picture
            }
            Self::ColorDistortion { strength } => {
                if draws.chance(0.8) {
                    let strengths = [0.8, 0.8, 0.8, 0.2].map(|of| of * strength);
                    jitter(&mut picture, strengths, draws);
                }
                if draws.chance(0.2) {
                    to_gray(&mut picture);
                }
                picture
            }
            Self::GaussianBlur {
                p,
                radius_min,
                radius_max,
            } => {
                if draws.chance(p) {
                    gaussian_blur(&mut picture, draws.between(radius_min, radius_max));
                }
                picture
            }
        }
    }
}

/// A part of a picture, resized to a square, bilinear.
#[must_use]
pub fn resized_part(picture: &Rgb, part: Part, side: usize) -> Rgb {
    let cut = cut_out(picture, part.within(picture));
    resized(&cut, (side, side), Filter::Bilinear)
}

/// As Pillow 13 resizes, bit by bit. It goes along columns first where that leaves less to do, which
/// rounds otherwise than earlier versions did; [`Resampler`] is like those.
fn resized(picture: &Rgb, (width, height): (usize, usize), filter: Filter) -> Rgb {
    let from = (picture.width, picture.height);
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (rows, columns) = (lost(from.1, height), lost(from.0, width));
    if rows > 0 && rows > 2 * columns {
        let narrow = (from.0, height);
        let picture = Resampler::with_filter(from, narrow, filter).resize(picture);
        return Resampler::with_filter(narrow, (width, height), filter).resize(&picture);
    }
    Resampler::with_filter(from, (width, height), filter).resize(picture)
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

/// Brightness, contrast, saturation and hue in random order, as torchvision's `ColorJitter`.
fn jitter(picture: &mut Rgb, strengths: [f64; 4], draws: &mut Sequence) {
    let mut order = [0, 1, 2, 3];
    draws.shuffle(&mut order);
    for of in order {
        let strength = strengths[of];
        if strength == 0.0 {
            continue;
        }
        if of == 3 {
            turn_hue(picture, draws.between(-strength, strength));
            continue;
        }
        let factor = draws.between((1.0 - strength).max(0.0), 1.0 + strength);
        [brighten, contrast, saturate][of](picture, factor);
    }
}
