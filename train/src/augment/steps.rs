//! A list of changes of a picture, as ZeroVL's recipes write it.

use evaluate::images::{Filter, Part, Rgb};
use merge::random::Sequence;
use serde::{Deserialize, Serialize};

use super::auto_augment::draw_policy;
use super::{Distortion, PictureChange, RandomCrop};

/// One step. Sizes are in pixels, of a square's side unless another unit is named.
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
        /// The probability of the step.
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

/// The size of a step's result.
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

    /// The fault of its numbers, as a clause.
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

    /// The changes that it makes to a picture of this width and height, in order.
    #[must_use]
    pub fn draw(
        &self,
        (width, height): (usize, usize),
        draws: &mut Sequence,
    ) -> Vec<PictureChange> {
        match *self {
            Self::Resize { size } => vec![PictureChange::square(size)],
            Self::ResizeBicubic { size } => {
                let longer = |long: usize, short: usize| (size * long / short.max(1)).max(1);
                let (width, height) = match width <= height {
                    true => (size, longer(height, width)),
                    false => (longer(width, height), size),
                };
                let filter = Filter::Bicubic;
                vec![PictureChange::Resized {
                    width,
                    height,
                    filter,
                }]
            }
            Self::CenterCrop { size } => vec![PictureChange::Center(size)],
            Self::RandomCrop { size } => {
                let part = Part {
                    top: draws.below(height.max(size) - size + 1),
                    left: draws.below(width.max(size) - size + 1),
                    width: size,
                    height: size,
                };
                vec![PictureChange::Padded(size), PictureChange::Cut(part)]
            }
            Self::RandomResizeCrop { size, scale } => {
                let crop = RandomCrop {
                    area: scale,
                    ..RandomCrop::default()
                };
                let part = crop.draw_in((width, height), draws);
                vec![PictureChange::Cut(part), PictureChange::square(size)]
            }
            Self::RandomFlip if draws.chance(0.5) => vec![PictureChange::Mirrored],
            Self::RandomFlip => Vec::new(),
            Self::Autoaug => {
                let drawn = draw_policy(draws).into_iter();
                let changes = drawn.map(|(change, index, is_negative)| PictureChange::Policy {
                    change,
                    index,
                    is_negative,
                });
                changes.collect()
            }
            Self::Randaug {
                operations,
                magnitude,
            } => {
                let drawn = (0..operations).map(|_| PictureChange::Distorted {
                    distortion: Distortion::draw(draws),
                    strength: magnitude / 30.0,
                    is_negative: draws.chance(0.5),
                });
                drawn.collect()
            }
            Self::ColorJitter { strength } => jitter([strength, strength, strength, 0.0], draws),
            Self::ColorDistortion { strength } => {
                let strengths = [0.8, 0.8, 0.8, 0.2].map(|of| of * strength);
                let mut changes = match draws.chance(0.8) {
                    true => jitter(strengths, draws),
                    false => Vec::new(),
                };
                if draws.chance(0.2) {
                    changes.push(PictureChange::Gray);
                }
                changes
            }
            Self::GaussianBlur {
                p,
                radius_min,
                radius_max,
            } => match draws.chance(p) {
                true => vec![PictureChange::Blurred(
                    draws.between(radius_min, radius_max),
                )],
                false => Vec::new(),
            },
        }
    }

    /// The picture after this step.
    #[must_use]
    pub fn apply(&self, picture: Rgb, draws: &mut Sequence) -> Rgb {
        let changes = self.draw((picture.width, picture.height), draws);
        let changes = changes.iter();
        changes.fold(picture, |picture, change| change.apply(picture))
    }
}

/// Brightness, contrast, saturation and hue in random order, as torchvision's `ColorJitter`.
pub(super) fn jitter(strengths: [f64; 4], draws: &mut Sequence) -> Vec<PictureChange> {
    let mut order = [0, 1, 2, 3];
    draws.shuffle(&mut order);
    let mut changes = Vec::new();
    for of in order {
        let strength = strengths[of];
        if strength == 0.0 {
            continue;
        }
        changes.push(match of {
            3 => PictureChange::Hue(draws.between(-strength, strength)),
            _ => {
                let factor = draws.between((1.0 - strength).max(0.0), 1.0 + strength);
                [
                    PictureChange::Brightness,
                    PictureChange::Contrast,
                    PictureChange::Saturation,
                ][of](factor)
            }
        });
    }
    changes
}
