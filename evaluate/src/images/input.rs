//! The form in which a model takes a picture.

use super::{Filter, Passes};

/// The way in which a picture gets a model's size. A result larger than the model's side is cut to its center.
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

/// The treatment of transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpha {
    /// It is dropped before anything else: transparent pixels have the color that the file gives them.
    Dropped,
    /// Colors are resized by their share, as Pillow resizes RGBA, and it is dropped afterwards: pixels
    /// that are wholly transparent become black. Opaque pictures are the same either way.
    Premultiplied,
}

/// The place of a center whose margins differ by a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Margins {
    /// Half of them rounded to the even neighbor, as today's torchvision and timm.
    Even,
    /// The first one larger, as torchvision 0.8.
    FirstLarger,
    /// The last one larger, as transformers. A picture that is too small has its larger margin first then.
    LastLarger,
}

impl Margins {
    /// The first margin where `rest` pixels are cut off.
    #[must_use]
    pub fn first(self, rest: usize) -> usize {
        match self {
            Self::Even => (rest as f64 / 2.0).round_ties_even() as usize,
            Self::FirstLarger => rest.div_ceil(2),
            Self::LastLarger => rest / 2,
        }
    }

    /// The first margin where `lacking` pixels are filled up.
    #[must_use]
    pub fn filled(self, lacking: usize) -> usize {
        match self {
            Self::LastLarger => lacking.div_ceil(2),
            Self::Even | Self::FirstLarger => lacking / 2,
        }
    }
}

/// The form in which a model takes a picture. It comes with the weights, for pixels of another kind give numbers that
/// look right and are not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageInput {
    /// Width and height in pixels.
    pub side: usize,
    /// The way in which a picture gets that size.
    pub resize: Resize,
    /// The filter of its samples.
    pub filter: Filter,
    /// The direction of the first pass.
    pub passes: Passes,
    /// The place of the center.
    pub margins: Margins,
    /// The treatment of transparency.
    pub alpha: Alpha,
    /// Taken from each channel, red, green and blue, after it is scaled to `[0, 1]`.
    pub mean: [f32; 3],
    /// The divisor of each channel after that.
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

    /// The square transform of published code: squashed to `side` by `side`, bicubic, each channel from `[0, 1]` to
    /// `[-1, 1]`.
    #[must_use]
    pub fn square(side: usize) -> Self {
        Self {
            side,
            resize: Resize::Squash,
            filter: Filter::Bicubic,
            passes: Passes::RowsFirst,
            margins: Margins::Even,
            alpha: Alpha::Dropped,
            mean: [0.5; 3],
            deviation: [0.5; 3],
        }
    }

    /// The CLIP transform of FLM's published program: the shorter side to `side`, bicubic, colors by their share, the
    /// center, CLIP's mean and deviation.
    #[must_use]
    pub fn flm(side: usize) -> Self {
        Self {
            resize: Resize::Shorter { to: side },
            margins: Margins::FirstLarger,
            alpha: Alpha::Premultiplied,
            ..Self::square(side).normalized_by(Self::CLIP)
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
