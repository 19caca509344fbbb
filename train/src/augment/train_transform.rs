//! From a picture to a random view of it, the input of a model in training.

use evaluate::images::{Filter, Normalization, Part, Resampler, Rgb, channels_into};
use merge::random::Sequence;

use super::steps::jitter;
use super::{RandomAugment, RandomCrop};

/// A random view of a picture, as published training has it: a random part, resized to a square
/// (bicubic), mirrored half of the times, its colors changed, then RandAugment, then normalized.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainTransform {
    /// Width and height of the result.
    pub side: usize,
    /// The part of the picture that is seen.
    pub crop: RandomCrop,
    /// The probability that the picture is mirrored.
    pub flip: f64,
    /// Brightness, contrast and saturation, each times a factor from `1 - color` to `1 + color`, in random
    /// order; 0 leaves them as they are.
    pub color: f64,
    /// The operations after that.
    pub augment: RandomAugment,
    /// The normalization of values: it belongs to the model.
    pub normalization: Normalization,
}

impl TrainTransform {
    /// With the published settings.
    #[must_use]
    pub fn new(side: usize) -> Self {
        Self {
            side,
            crop: RandomCrop::default(),
            flip: 0.5,
            color: 0.0,
            augment: RandomAugment::default(),
            normalization: Normalization::new([0.5; 3], [0.5; 3]),
        }
    }

    /// Values in the result.
    #[must_use]
    pub fn len(&self) -> usize {
        3 * self.side * self.side
    }

    /// Whether the result has no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.side == 0
    }

    /// The view before it is normalized.
    #[must_use]
    pub fn view(&self, picture: &Rgb, draws: &mut Sequence) -> Rgb {
        let part = self.crop.draw(picture, draws);
        let is_mirrored = draws.chance(self.flip);
        let mut view = self.part(picture, part, is_mirrored);
        self.change(&mut view, draws);
        view
    }

    /// A part of a picture in the result's size, bicubic, mirrored or not.
    #[must_use]
    pub fn part(&self, picture: &Rgb, part: Part, is_mirrored: bool) -> Rgb {
        let mut view = resized(picture, part.within(picture), self.side, Filter::Bicubic);
        if is_mirrored {
            mirror(&mut view);
        }
        view
    }

    /// Changes colors, then shape and colors by RandAugment.
    fn change(&self, picture: &mut Rgb, draws: &mut Sequence) {
        if self.color > 0.0 {
            let changes = jitter([self.color, self.color, self.color, 0.0], draws);
            *picture = (changes.iter()).fold(picture.clone(), |view, change| change.apply(view));
        }
        self.augment.apply(picture, draws);
    }

    /// The normalized view, `(3, side, side)`, into a buffer of [`len`](Self::len)
    /// values.
    pub fn apply_into(&self, picture: &Rgb, draws: &mut Sequence, values: &mut [f32]) {
        self.normalization.write(&self.view(picture, draws), values);
    }
}

/// Two random views of the same part of a picture: one for the model, one for the tokenizer of
/// images whose tokens are to be guessed.
///
/// The whole picture is mirrored half of the times, then RandAugment, then a random part is
/// resized twice: bilinear and normalized for the model, by Lanczos' filter and as
/// `0.8 v / 255 + 0.1` for the tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct TwoViews {
    /// The model's view, and all that is drawn.
    pub train: TrainTransform,
    /// Width and height of the tokenizer's view.
    pub target_side: usize,
}

impl TwoViews {
    /// With the published settings. The tokenizer has a token for every 8 by 8 pixels, the model for
    /// every 16 by 16, as a rule: to 224 pixels belong 112.
    #[must_use]
    pub fn new(side: usize, target_side: usize) -> Self {
        Self {
            train: TrainTransform::new(side),
            target_side,
        }
    }

    /// Both views as pictures, the model's and the tokenizer's.
    #[must_use]
    pub fn views(&self, picture: &Rgb, draws: &mut Sequence) -> [Rgb; 2] {
        let mut picture = picture.clone();
        if draws.chance(self.train.flip) {
            mirror(&mut picture);
        }
        self.train.change(&mut picture, draws);
        let part = self.train.crop.draw(&picture, draws);
        [
            resized(&picture, part, self.train.side, Filter::Bilinear),
            resized(&picture, part, self.target_side, Filter::Lanczos),
        ]
    }

    /// Both views: `(3, side, side)`, normalized, into `values`, and `(3, target_side,
    /// target_side)` in `[0.1, 0.9]` into `target`.
    pub fn apply_into(
        &self,
        picture: &Rgb,
        draws: &mut Sequence,
        values: &mut [f32],
        target: &mut [f32],
    ) {
        let [view, target_view] = self.views(picture, draws);
        self.train.normalization.write(&view, values);
        target_into(&target_view, target);
    }
}

/// The tokenizer's view of a whole picture, beside a model's that is only resized: by Lanczos'
/// filter.
#[must_use]
pub fn target_view(picture: &Rgb, side: usize) -> Rgb {
    let whole = Part {
        left: 0,
        top: 0,
        width: picture.width,
        height: picture.height,
    };
    resized(picture, whole, side, Filter::Lanczos)
}

/// Writes a picture as the tokenizer of images wants it: `0.8 v / 255 + 0.1`, `(3, height, width)`.
///
/// Ramesh et al. 2021, <https://arxiv.org/abs/2102.12092>, appendix A.3.
pub fn target_into(picture: &Rgb, values: &mut [f32]) {
    channels_into(picture, &TARGET, values);
}

/// Each step rounded to `f32`, as torch rounds it.
const TARGET: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = 0.8 * (value as f32 / 255.0) + 0.1;
        value += 1;
    }
    table
};

fn resized(picture: &Rgb, part: Part, side: usize, filter: Filter) -> Rgb {
    let from = (part.width, part.height);
    Resampler::with_filter(from, (side, side), filter).resize_part(picture, part)
}

/// Left and right change places.
pub fn mirror(picture: &mut Rgb) {
    let pixels = picture.pixels.as_chunks_mut::<3>().0;
    for row in pixels.chunks_mut(picture.width.max(1)) {
        row.reverse();
    }
}
