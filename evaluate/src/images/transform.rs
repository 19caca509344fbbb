//! From a picture to the input of a model.

use super::{Alpha, ImageInput, Margins, Part, Resampler, Resize, Rgb, alpha};

/// Turns a picture into the form of a model's [`ImageInput`]: resizes, cuts out the center, scales to `[0, 1]`,
/// normalizes each channel, puts channels first.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    input: ImageInput,
    normalization: Normalization,
}

impl Transform {
    /// For models with this input.
    #[must_use]
    pub fn new(input: &ImageInput) -> Self {
        Self {
            input: *input,
            normalization: Normalization::new(input.mean, input.deviation),
        }
    }

    /// For models with [`ImageInput::square`].
    #[must_use]
    pub fn square(side: usize) -> Self {
        Self::new(&ImageInput::square(side))
    }

    /// Width and height of the result.
    #[must_use]
    pub fn side(&self) -> usize {
        self.input.side
    }

    /// Values in the result.
    #[must_use]
    pub fn len(&self) -> usize {
        3 * self.input.side * self.input.side
    }

    /// Whether the result has no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.input.side == 0
    }

    /// The normalized pixels, `(3, side, side)`.
    #[must_use]
    pub fn apply(&self, picture: &Rgb) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.apply_into(picture, &mut values);
        values
    }

    /// As [`apply`](Self::apply), into a buffer of [`len`](Self::len) values.
    pub fn apply_into(&self, picture: &Rgb, values: &mut [f32]) {
        self.normalization.write(&self.resized(picture), values);
    }

    /// The picture in the model's size, `side` by `side`, before its values are normalized.
    #[must_use]
    pub fn resized(&self, picture: &Rgb) -> Rgb {
        let side = self.input.side;
        let from = (picture.width, picture.height);
        let to = match self.input.resize {
            Resize::Squash => (side, side),
            Resize::SquashTo { to } => (to, to),
            Resize::Shorter { to } => shorter(from, to),
        };
        let resampler = Resampler::with_filter(from, to, self.input.filter);
        let resampler = resampler.in_passes(self.input.passes);
        let resized = match &picture.alpha {
            Some(alpha) if self.input.alpha == Alpha::Premultiplied && from != to => {
                alpha::resize(&resampler, picture, alpha)
            }
            _ => resampler.resize(picture),
        };
        match to == (side, side) {
            true => resized,
            false => center(&resized, side, self.input.margins),
        }
    }
}

/// The size of a picture whose shorter side becomes `to`; the longer one is cut towards zero.
#[must_use]
pub fn shorter((width, height): (usize, usize), to: usize) -> (usize, usize) {
    let longer = |long: usize, short: usize| to * long / short.max(1);
    match width <= height {
        true => (to, longer(height, width)),
        false => (longer(width, height), to),
    }
}

/// The size that ViLT's transform gives a picture: the shorter side `shorter`, the longer one at most
/// `longest`, the aspect ratio kept, each side cut to a multiple of `multiple` and at least one of it.
#[must_use]
pub fn in_multiples(
    (width, height): (usize, usize),
    shorter: usize,
    longest: usize,
    multiple: usize,
) -> (usize, usize) {
    let scale = shorter as f64 / width.min(height).max(1) as f64;
    let mut sides = match width > height {
        true => [scale * width as f64, shorter as f64],
        false => [shorter as f64, scale * height as f64],
    };
    let long = sides[0].max(sides[1]);
    if long > longest as f64 {
        sides = sides.map(|side| side * (longest as f64 / long));
    }
    let [width, height] = sides.map(|side| {
        let whole = (side + 0.5) as usize / multiple.max(1) * multiple;
        whole.max(multiple)
    });
    (width, height)
}

/// The center of a picture, `side` by `side`; missing parts are black.
///
/// Where a picture is too small, its margins are those of [`Margins::filled`].
#[must_use]
pub fn center(picture: &Rgb, side: usize, margins: Margins) -> Rgb {
    let margin = |size: usize| size.checked_sub(side).map_or(0, |rest| margins.first(rest));
    let part = Part {
        left: margin(picture.width),
        top: margin(picture.height),
        width: side,
        height: side,
    }
    .within(picture);
    let [left, top] = [part.width, part.height].map(|size| margins.filled(side - size));
    let mut pixels = vec![0; 3 * side * side];
    for row in 0..part.height {
        let from = 3 * ((part.top + row) * picture.width + part.left);
        let to = 3 * ((top + row) * side + left);
        let n = 3 * part.width;
        pixels[to..to + n].copy_from_slice(&picture.pixels[from..from + n]);
    }
    Rgb {
        width: side,
        height: side,
        pixels,
        alpha: None,
    }
}

/// The normalized value of each value of each channel: `(value / 255 - mean) / deviation`, each step rounded to `f32`
/// as torch rounds it.
#[derive(Clone, PartialEq)]
pub struct Normalization(Box<[[f32; 256]; 3]>);

impl std::fmt::Debug for Normalization {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ends = self.0.map(|table| [table[0], table[255]]);
        formatter.debug_tuple("Normalization").field(&ends).finish()
    }
}

impl Normalization {
    /// By the mean and deviation of each channel.
    #[must_use]
    pub fn new(mean: [f32; 3], deviation: [f32; 3]) -> Self {
        let table = |channel: usize| {
            std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / deviation[channel])
        };
        Self(Box::new([0, 1, 2].map(table)))
    }

    /// Writes a picture as `(3, height, width)`.
    pub fn write(&self, picture: &Rgb, values: &mut [f32]) {
        let [red, green, blue] = &*self.0;
        write(picture, [red, green, blue], values);
    }
}

/// Scales a picture to `[0, 1]`, normalizes each channel with mean 0.5 and deviation 0.5, and writes
/// it as `(3, height, width)`.
pub fn normalize_into(picture: &Rgb, values: &mut [f32]) {
    channels_into(picture, &NORMALIZED, values);
}

/// Writes a picture as `(3, height, width)`, each value being what `table` has in its place.
pub fn channels_into(picture: &Rgb, table: &[f32; 256], values: &mut [f32]) {
    write(picture, [table; 3], values);
}

fn write(picture: &Rgb, tables: [&[f32; 256]; 3], values: &mut [f32]) {
    let n_pixels = picture.width * picture.height;
    let (red, others) = values.split_at_mut(n_pixels.min(values.len()));
    let (green, blue) = others.split_at_mut(n_pixels.min(others.len()));
    let pixels = picture.pixels.as_chunks::<3>().0;
    for (((&[r, g, b], red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        *red = tables[0][usize::from(r)];
        *green = tables[1][usize::from(g)];
        *blue = tables[2][usize::from(b)];
    }
}

/// `(value / 255 - 0.5) / 0.5`, each step rounded to `f32` as torch rounds it.
const NORMALIZED: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = (value as f32 / 255.0 - 0.5) / 0.5;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Filter;

    #[test]
    fn a_square_of_the_right_size_is_only_normalized() {
        let picture = Rgb {
            width: 2,
            height: 2,
            pixels: vec![0, 255, 51, 0, 255, 51, 0, 255, 51, 255, 0, 51],
            alpha: None,
        };
        let values = Transform::square(2).apply(&picture);
        // 51 / 255 = 0.2, and (0.2 - 0.5) / 0.5 = -0.6.
        assert_eq!(values[..4], [-1.0, -1.0, -1.0, 1.0]);
        assert_eq!(values[4..8], [1.0, 1.0, 1.0, -1.0]);
        assert!(values[8..].iter().all(|value| (value + 0.6).abs() < 1e-6));
    }

    /// A picture whose red is the column and whose green is the row.
    fn places(width: usize, height: usize) -> Rgb {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 0]));
        Rgb {
            width,
            height,
            pixels: pixels.collect(),
            alpha: None,
        }
    }

    #[test]
    fn the_shorter_side_gets_its_size_and_the_center_is_kept() {
        // 7 by 4 stays 7 by 4; of 7 columns the 4 from 2 on stay, for 1.5 rounds to the even 2.
        let input = ImageInput {
            resize: Resize::Shorter { to: 4 },
            filter: Filter::Bilinear,
            ..ImageInput::square(4)
        };
        let found = Transform::new(&input).resized(&places(7, 4));
        assert_eq!((found.width, found.height), (4, 4));
        assert_eq!(found.pixel(0, 0), Some([2, 0, 0]));
        assert_eq!(found.pixel(3, 3), Some([5, 3, 0]));
        assert_eq!(shorter((640, 427), 224), (335, 224));
        assert_eq!(shorter((427, 640), 224), (224, 335));
    }

    #[test]
    fn a_center_that_reaches_beyond_the_picture_is_black_there() {
        // One column of two is lacking: the larger half of the margin comes last.
        let found = center(&places(3, 6), 4, Margins::Even);
        let row = |y: usize| (0..4).map(move |x| (x, y));
        let reds: Vec<u8> = row(0)
            .filter_map(|(x, y)| Some(found.pixel(x, y)?[0]))
            .collect();
        let greens: Vec<u8> = row(0)
            .filter_map(|(x, y)| Some(found.pixel(x, y)?[1]))
            .collect();
        assert_eq!((reds, greens), (vec![0, 1, 2, 0], vec![1, 1, 1, 0]));
    }

    #[test]
    fn each_channel_has_its_own_mean_and_deviation() {
        let input = ImageInput::square(1).normalized_by(ImageInput::IMAGENET);
        let picture = Rgb {
            width: 1,
            height: 1,
            pixels: vec![255, 0, 51],
            alpha: None,
        };
        let values = Transform::new(&input).apply(&picture);
        // (1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225.
        let expected = [2.248_908_3, -2.035_714_4, -0.915_555_6];
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(values.iter().zip(&expected).all(close), "{values:?}");
    }
}
