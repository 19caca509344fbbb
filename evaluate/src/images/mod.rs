//! Pictures: bytes in, normalized pixels out, as Pillow and torchvision would have them.
//!
//! 1. [`decode`] turns the bytes of a file into [`Rgb`] pixels, equal to Pillow's
//!    `convert("RGB")`: JPEG bit by bit, alpha dropped, palettes looked up, orientation tags ignored
//!    as published code ignores them.
//!    [`open`] reads it off a file, and [`list`] finds the files of a folder.
//! 2. [`Resampler`] resizes a picture, or a [`Part`] of it, with a [`Filter`] of Pillow, equal bit
//!    by bit.
//! 3. [`Transform`] does what a model's [`ImageInput`] asks for: resize, cut out the center, normalize,
//!    channels first.

mod alpha;
mod decode;
mod files;
mod filter;
mod input;
mod jpeg;
mod part;
mod resample;
mod thumbnail;
mod transform;

pub use decode::{Format, MAX_PIXELS, decode, size};
pub use files::{list, open};
pub use filter::Filter;
pub use input::{Alpha, ImageInput, Margins, Resize};
pub use part::Part;
pub use resample::{Passes, Resampler};
pub use thumbnail::thumbnail;
pub use transform::{
    Normalization, Transform, center, channels_into, in_multiples, normalize_into, shorter,
};

/// A picture: rows from the top, pixels from the left, red, green and blue in eight bits each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `3 * width * height` values.
    pub pixels: Vec<u8>,
    /// The opacity of each pixel, `width * height` values, of a picture that is not opaque. Most models see the colors
    /// alone ([`ImageInput::alpha`]).
    pub alpha: Option<Vec<u8>>,
}

impl Rgb {
    /// The pixel at `x` from the left and `y` from the top, if there is one.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        if x >= self.width {
            return None;
        }
        let (pixels, _) = self.pixels.as_chunks::<3>();
        pixels.get(y * self.width + x).copied()
    }
}
