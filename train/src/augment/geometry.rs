//! Operations on the places of pixels: shear, translation, rotation.

use evaluate::images::Rgb;

/// Fractional bits of a place in the source, as OpenCV 4 has them.
const PLACE_BITS: u32 = 5;

/// Fractional bits of coordinates before they are rounded to [`PLACE_BITS`].
const COORDINATE_BITS: u32 = 10;

/// One pixel in the fixed point of places.
const ONE: i32 = 1 << PLACE_BITS;

/// An affine map of the plane, from the source to the result:
/// `x' = a x + b y + c`, `y' = d x + e y + f`, in rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(pub [[f64; 3]; 2]);

impl Affine {
    /// `x' = x + amount · y`.
    #[must_use]
    pub fn shear_x(amount: f64) -> Self {
        Self([[1.0, single(amount), 0.0], [0.0, 1.0, 0.0]])
    }

    /// `y' = y + amount · x`.
    #[must_use]
    pub fn shear_y(amount: f64) -> Self {
        Self([[1.0, 0.0, 0.0], [single(amount), 1.0, 0.0]])
    }

    /// `x' = x - amount`.
    #[must_use]
    pub fn translate_x(amount: f64) -> Self {
        Self([[1.0, 0.0, -single(amount)], [0.0, 1.0, 0.0]])
    }

    /// `y' = y - amount`.
    #[must_use]
    pub fn translate_y(amount: f64) -> Self {
        Self([[1.0, 0.0, 0.0], [0.0, 1.0, -single(amount)]])
    }

    /// Counter-clockwise about the center of a picture.
    #[must_use]
    pub fn rotate(degrees: f64, picture: &Rgb) -> Self {
        let (sin, cos) = (degrees * (std::f64::consts::PI / 180.0)).sin_cos();
        let (x, y) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
        Self([
            [cos, sin, (1.0 - cos) * x - sin * y],
            [-sin, cos, sin * x + (1.0 - cos) * y],
        ])
    }

    /// From the result to the source. A map onto a line, which has no way back, gives zeros.
    #[must_use]
    pub fn inverse(self) -> Self {
        let Self([[a, b, c], [d, e, f]]) = self;
        let determinant = a * e - b * d;
        let scale = match determinant == 0.0 {
            true => 0.0,
            false => 1.0 / determinant,
        };
        let (a, b, d, e) = (e * scale, b * -scale, d * -scale, a * scale);
        Self([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])
    }
}

/// Published programs hold these matrices in single precision.
fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

/// Moves the pixels of a picture by an affine map, bit by bit as OpenCV 4's `warpAffine` does with
/// bilinear weights: places are rounded to 1/32 of a pixel. A place outside of the picture
/// has the color `fill`.
pub fn warp(picture: &mut Rgb, map: Affine, fill: [u8; 3]) {
    let (width, height) = (picture.width, picture.height);
    if width == 0 || height == 0 {
        return;
    }
    let Affine([[a, b, c], [d, e, f]]) = map.inverse();
    let fixed = |value: f64| (value * f64::from(1 << COORDINATE_BITS)).round_ties_even() as i32;
    let steps: Vec<(i32, i32)> = (0..width)
        .map(|x| (fixed(a * x as f64), fixed(d * x as f64)))
        .collect();
    let half = 1 << (COORDINATE_BITS - PLACE_BITS - 1);
    let source = Source::new(picture, fill);
    let rows = picture.pixels.as_chunks_mut::<3>().0;
    for (y, row) in rows.chunks_exact_mut(width).enumerate() {
        let x0 = fixed(b * y as f64 + c).saturating_add(half);
        let y0 = fixed(e * y as f64 + f).saturating_add(half);
        for (to, &(dx, dy)) in row.iter_mut().zip(&steps) {
            let x = x0.saturating_add(dx) >> (COORDINATE_BITS - PLACE_BITS);
            let y = y0.saturating_add(dy) >> (COORDINATE_BITS - PLACE_BITS);
            *to = source.at(x, y);
        }
    }
}

/// Pixels of [`FRAME`] around a picture: a place beyond them sees the same color.
const FRAME: usize = 2;

/// Bits of a color in a pixel: room for 255 · 1024.
const COLOR_BITS: u32 = 21;

/// A picture in a frame of one color, a pixel in a word: so a product weighs all three colors.
struct Source {
    pixels: Vec<u64>,
    stride: usize,
    /// The last place in the frame that has another to its right, and one below it.
    last: (i32, i32),
}

impl Source {
    fn new(picture: &Rgb, fill: [u8; 3]) -> Self {
        let (width, height) = (picture.width, picture.height);
        let stride = width + 2 * FRAME;
        let mut pixels = vec![joined(fill); stride * (height + 2 * FRAME)];
        let rows = picture.pixels.as_chunks::<3>().0.chunks_exact(width);
        let framed = pixels.chunks_exact_mut(stride).skip(FRAME);
        for (to, from) in framed.zip(rows) {
            for (to, &from) in to[FRAME..].iter_mut().zip(from) {
                *to = joined(from);
            }
        }
        // Pictures have far fewer pixels than an `i32` counts.
        let last = |side: usize| i32::try_from(side + 2 * FRAME - 2).unwrap_or(i32::MAX);
        Self {
            pixels,
            stride,
            last: (last(width), last(height)),
        }
    }

    /// The color at a place, in 1/32 of a pixel.
    #[inline(always)]
    fn at(&self, x: i32, y: i32) -> [u8; 3] {
        let frame = FRAME as i32;
        let left = ((x >> PLACE_BITS) + frame).clamp(0, self.last.0) as usize;
        let top = ((y >> PLACE_BITS) + frame).clamp(0, self.last.1) as usize;
        let (right, down) = ((x & (ONE - 1)) as u64, (y & (ONE - 1)) as u64);
        let first = top * self.stride + left;
        let rows = &self.pixels[first..first + self.stride + 2];
        let upper = between(rows[0], rows[1], right);
        let lower = between(rows[self.stride], rows[self.stride + 1], right);
        let sum = between(upper, lower, down).wrapping_add(ROUNDING);
        parted(sum >> (2 * PLACE_BITS))
    }
}

/// Half a unit for each color.
const ROUNDING: u64 = (1 << (2 * PLACE_BITS - 1)) * (1 | 1 << COLOR_BITS | 1 << (2 * COLOR_BITS));

/// `(32 - share) a + share b`. Differences may borrow from the next color, which the sum gives back.
#[inline(always)]
fn between(a: u64, b: u64, share: u64) -> u64 {
    (a << PLACE_BITS).wrapping_add(b.wrapping_sub(a).wrapping_mul(share))
}

#[inline(always)]
fn joined([red, green, blue]: [u8; 3]) -> u64 {
    u64::from(red) | u64::from(green) << COLOR_BITS | u64::from(blue) << (2 * COLOR_BITS)
}

#[inline(always)]
fn parted(pixel: u64) -> [u8; 3] {
    [0, COLOR_BITS, 2 * COLOR_BITS].map(|bits| (pixel >> bits) as u8)
}
