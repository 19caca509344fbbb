//! Gaussian blur as Pillow approximates it: three box blurs in fixed point.

use evaluate::images::Rgb;

/// Box blurs along each axis.
const PASSES: usize = 3;

/// Bits behind the point of a weight.
const BITS: u32 = 24;

/// `PIL.ImageFilter.GaussianBlur(radius)`; the radius is the standard deviation in pixels.
///
/// Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering".
pub fn gaussian_blur(picture: &mut Rgb, radius: f64) {
    let weights = Weights::of(box_radius(radius as f32));
    if radius <= 0.0 || picture.width == 0 || picture.height == 0 {
        return;
    }
    let (width, height) = (picture.width, picture.height);
    let mut line = Vec::new();
    for row in 0..height {
        for color in 0..3 {
            let places = (0..width).map(|x| 3 * (row * width + x) + color);
            weights.blur(&mut picture.pixels, places, &mut line);
        }
    }
    for column in 0..width {
        for color in 0..3 {
            let places = (0..height).map(|y| 3 * (y * width + column) + color);
            weights.blur(&mut picture.pixels, places, &mut line);
        }
    }
}

/// The half width of boxes that together have the deviation of the Gaussian.
fn box_radius(radius: f32) -> f32 {
    let variance = radius * radius / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let above = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    let below = 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
    whole + above / below
}

/// A box with soft ends.
struct Weights {
    radius: usize,
    whole: u32,
    end: u32,
}

impl Weights {
    fn of(radius: f32) -> Self {
        let whole = ((1_u32 << BITS) as f32 / (radius * 2.0 + 1.0)) as u32;
        let n = radius as u32 * 2 + 1;
        Self {
            radius: radius as usize,
            whole,
            end: ((1 << BITS) - n * whole) / 2,
        }
    }

    /// Blurs the values at these places as one line.
    fn blur(
        &self,
        values: &mut [u8],
        places: impl Iterator<Item = usize> + Clone,
        line: &mut Vec<u8>,
    ) {
        for _ in 0..PASSES {
            line.clear();
            line.extend(places.clone().map(|place| values[place]));
            let last = line.len() - 1;
            let at = |index: i64| u32::from(line[(index.max(0) as usize).min(last)]);
            let radius = self.radius as i64;
            let mut sum: u32 = (-radius..=radius).map(at).sum();
            for (index, place) in places.clone().enumerate() {
                let index = index as i64;
                let ends = at(index - radius - 1) + at(index + radius + 1);
                let blurred = (sum * self.whole).wrapping_add(ends * self.end);
                values[place] = (blurred.wrapping_add(1 << (BITS - 1)) >> BITS) as u8;
                sum = sum + at(index + radius + 1) - at(index - radius);
            }
        }
    }
}
