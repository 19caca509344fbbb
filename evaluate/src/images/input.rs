//! What a model takes of a picture.

use super::Filter;

/// How a picture is brought to a model's size. What is larger than the model's side in the end is
/// cut to its center.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// To the model's side both ways; the aspect ratio is not kept.
    Squash,
    /// To `to` pixels both ways, then the center: the aspect ratio is not kept.
    SquashTo {
        /// Width and height before the center is cut out.
        to: usize,
    },
    /// The shorter side to `to` pixels, the aspect ratio kept, then the center.
    Shorter {
        /// The shorter side before the center is cut out.
        to: usize,
    },
}

/// What a model takes of a picture: it comes with the weights, for pixels of another kind give
/// numbers that look right and are not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageInput {
    /// Width and height in pixels.
    pub side: usize,
    /// How a picture gets that size.
    pub resize: Resize,
    /// How it is sampled on the way.
    pub filter: Filter,
    /// Taken from each channel, red, green and blue, after it is scaled to `[0, 1]`.
    pub mean: [f32; 3],
    /// What each channel is divided by then.
    pub deviation: [f32; 3],
}

impl ImageInput {
    /// Mean and deviation of the pictures of ImageNet, as timm and torchvision have them.
    pub const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

    /// Mean and deviation of CLIP (Radford et al. 2021, <https://arxiv.org/abs/2103.00020>).
    pub const CLIP: [[f32; 3]; 2] = [
        [0.481_454_66, 0.457_827_5, 0.408_210_73],
        [0.268_629_54, 0.261_302_6, 0.275_777_1],
    ];

    /// What published code calls the square transform: squashed to `side` by `side`, bicubic, each
    /// channel from `[0, 1]` to `[-1, 1]`.
    #[must_use]
    pub fn square(side: usize) -> Self {
        Self {
            side,
            resize: Resize::Squash,
            filter: Filter::Bicubic,
            mean: [0.5; 3],
            deviation: [0.5; 3],
        }
    }

    /// The same with another mean and deviation.
    #[must_use]
    pub fn normalized_by(self, [mean, deviation]: [[f32; 3]; 2]) -> Self {
        Self {
            mean,
            deviation,
            ..self
        }
    }
}
