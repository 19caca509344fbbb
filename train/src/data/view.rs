//! The view of a picture that a model gets.

use std::borrow::Cow;

use evaluate::images::{ImageInput, Normalization, Rgb, Transform};
use merge::random::{Draws, Sequence};

use super::Example;
use crate::augment::{
    FlipGuard, PictureStep, RandomAugment, RandomCrop, RandomErasing, Slips, TrainTransform,
    TwoViews, target_into, target_view,
};
use crate::recipe::Augmentation;
use crate::{Error, Result};

/// The view of a picture that a model gets.
#[derive(Clone)]
pub(super) enum View {
    /// All of it, resized to a square.
    Square(Transform),
    /// A random part of it, changed; mirrored as its texts allow.
    Random(FlipGuard, TrainTransform),
    /// The result of a list of steps.
    Listed(Listed),
}

/// A list of changes of a picture.
#[derive(Clone)]
pub(super) struct Listed {
    side: usize,
    steps: Vec<PictureStep>,
    normalization: Normalization,
    erasing: RandomErasing,
}

impl View {
    /// All of a picture.
    pub(super) fn square(image: &ImageInput) -> Self {
        Self::Square(Transform::new(image))
    }

    /// The view that a recipe asks for, for a model that takes such pictures.
    ///
    /// # Errors
    /// [`Error::OtherPictureSide`] for steps that end with another square.
    pub(super) fn of(augmentation: &Augmentation, image: &ImageInput) -> Result<Self> {
        let normalization = Normalization::new(image.mean, image.deviation);
        Ok(match augmentation.in_full() {
            Augmentation::Random {
                operations,
                magnitude,
                flip,
                least_area,
                color,
                flip_guard,
                as_published,
            } => Self::Random(
                flip_guard,
                TrainTransform {
                    side: image.side,
                    crop: RandomCrop {
                        area: [least_area, 1.0],
                        ..RandomCrop::default()
                    },
                    flip: if flip { 0.5 } else { 0.0 },
                    color,
                    augment: RandomAugment {
                        n_operations: operations,
                        magnitude,
                        slips: match as_published {
                            true => Slips::EVE,
                            false => Slips::default(),
                        },
                        ..RandomAugment::default()
                    },
                    normalization,
                },
            ),
            Augmentation::Listed { steps, erasing } => {
                let (found, expected) = (PictureStep::side(&steps), image.side);
                if found != Some(expected) {
                    return Err(Error::OtherPictureSide { found, expected });
                }
                Self::Listed(Listed {
                    side: expected,
                    steps,
                    normalization,
                    erasing,
                })
            }
            // The short names are written in full by now.
            Augmentation::Square
            | Augmentation::None
            | Augmentation::Color
            | Augmentation::Rand => Self::square(image),
        })
    }

    /// The view of the pictures of an example: not mirrored where its texts forbid it.
    pub(super) fn of_texts(&self, example: &Example) -> Cow<'_, Self> {
        match self {
            Self::Random(guard, view) if !guard.allows(example.words()) => {
                let view = TrainTransform {
                    flip: 0.0,
                    ..view.clone()
                };
                Cow::Owned(Self::Random(*guard, view))
            }
            view => Cow::Borrowed(view),
        }
    }

    /// Numbers of a picture in this view.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Square(transform) => transform.len(),
            Self::Random(_, view) => view.len(),
            Self::Listed(Listed { side, .. }) => 3 * side * side,
        }
    }

    /// Writes the view of a picture, `(3, side, side)`; erased boxes are filled by `noise`.
    pub(super) fn write(
        &self,
        picture: &Rgb,
        values: &mut [f32],
        draws: &mut Sequence,
        noise: &Draws,
    ) {
        match self {
            Self::Square(transform) => transform.apply_into(picture, values),
            Self::Random(_, view) => view.apply_into(picture, draws, values),
            Self::Listed(listed) => {
                let steps = listed.steps.iter();
                let view = steps.fold(picture.clone(), |view, step| step.apply(view, draws));
                listed.normalization.write(&view, values);
                listed.erasing.apply(values, listed.side, draws, noise);
            }
        }
    }

    /// Writes the view of a picture and that of the tokenizer of images, which has a side of its own.
    pub(super) fn write_two(
        &self,
        picture: &Rgb,
        values: &mut [f32],
        (target, target_side): (&mut [f32], usize),
        draws: &mut Sequence,
    ) {
        if let Self::Random(_, view) = self {
            let views = TwoViews {
                train: view.clone(),
                target_side,
            };
            return views.apply_into(picture, draws, values, target);
        }
        target_into(&target_view(picture, target_side), target);
        // Recipes with masked patches list no steps, so nothing is erased.
        self.write(picture, values, draws, &Draws::new(0, ""));
    }
}
