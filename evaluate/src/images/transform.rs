//! From a picture to the input of a model.

use super::{Resampler, Rgb};

/// What published code calls the square transform: resize to `side` by `side` (the aspect ratio is
/// not kept), scale to `[0, 1]`, normalize each channel with mean 0.5 and deviation 0.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    side: usize,
}

impl Transform {
    /// For models that see `side` by `side` pixels.
    #[must_use]
    pub fn square(side: usize) -> Self {
        Self { side }
    }

    /// Width and height of the result.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
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

    /// The normalized pixels, `(3, side, side)`, in `[-1, 1]`.
    #[must_use]
    pub fn apply(&self, picture: &Rgb) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.apply_into(picture, &mut values);
        values
    }

    /// As [`apply`](Self::apply), into a buffer of [`len`](Self::len) values.
    pub fn apply_into(&self, picture: &Rgb, values: &mut [f32]) {
        let from = (picture.width, picture.height);
        let square = Resampler::new(from, (self.side, self.side)).resize(picture);
        normalize_into(&square, values);
    }
}

/// Scales a picture to `[0, 1]`, normalizes each channel with mean 0.5 and deviation 0.5, and writes
/// it as `(3, height, width)`.
pub fn normalize_into(picture: &Rgb, values: &mut [f32]) {
    channels_into(picture, &NORMALIZED, values);
}

/// Writes a picture as `(3, height, width)`, each value being what `table` has in its place.
pub fn channels_into(picture: &Rgb, table: &[f32; 256], values: &mut [f32]) {
    let n_pixels = picture.width * picture.height;
    let (red, others) = values.split_at_mut(n_pixels.min(values.len()));
    let (green, blue) = others.split_at_mut(n_pixels.min(others.len()));
    let pixels = picture.pixels.as_chunks::<3>().0;
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        [*red, *green, *blue] = pixel.map(|value| table[usize::from(value)]);
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

    #[test]
    fn a_square_of_the_right_size_is_only_normalized() {
        let picture = Rgb {
            width: 2,
            height: 2,
            pixels: vec![0, 255, 51, 0, 255, 51, 0, 255, 51, 255, 0, 51],
        };
        let values = Transform::square(2).apply(&picture);
        // 51 / 255 = 0.2, and (0.2 - 0.5) / 0.5 = -0.6.
        assert_eq!(values[..4], [-1.0, -1.0, -1.0, 1.0]);
        assert_eq!(values[4..8], [1.0, 1.0, 1.0, -1.0]);
        assert!(values[8..].iter().all(|value| (value + 0.6).abs() < 1e-6));
    }
}
