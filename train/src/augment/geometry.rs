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
/// bilinear weights: places are rounded to 1/32 of a pixel. What comes from outside of the picture
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
    let source = Source {
        pixels: picture.pixels.as_chunks::<3>().0,
        width,
        height,
        fill,
    };
    let mut warped = vec![[0u8; 3]; width * height];
    for (y, row) in warped.chunks_exact_mut(width).enumerate() {
        let x0 = fixed(b * y as f64 + c).saturating_add(half);
        let y0 = fixed(e * y as f64 + f).saturating_add(half);
        for (to, &(dx, dy)) in row.iter_mut().zip(&steps) {
            let x = x0.saturating_add(dx) >> (COORDINATE_BITS - PLACE_BITS);
            let y = y0.saturating_add(dy) >> (COORDINATE_BITS - PLACE_BITS);
            *to = source.at(x, y);
        }
    }
    picture.pixels = warped.into_flattened();
}

struct Source<'a> {
    pixels: &'a [[u8; 3]],
    width: usize,
    height: usize,
    fill: [u8; 3],
}

impl Source<'_> {
    /// The color at a place, in 1/32 of a pixel.
    #[inline(always)]
    fn at(&self, x: i32, y: i32) -> [u8; 3] {
        let (left, top) = (x >> PLACE_BITS, y >> PLACE_BITS);
        let (right, down) = (x & (ONE - 1), y & (ONE - 1));
        let corner = self.four_inside(left, top);
        let four = corner.unwrap_or_else(|| self.four_anywhere(left, top));
        let weights = [
            (ONE - right) * (ONE - down),
            right * (ONE - down),
            (ONE - right) * down,
            right * down,
        ];
        std::array::from_fn(|channel| {
            let mut sum = 1 << (2 * PLACE_BITS - 1);
            for (pixel, weight) in four.iter().zip(weights) {
                sum += i32::from(pixel[channel]) * weight;
            }
            (sum >> (2 * PLACE_BITS)) as u8
        })
    }

    /// Four pixels around a place, if all are in the picture.
    #[inline(always)]
    fn four_inside(&self, left: i32, top: i32) -> Option<[[u8; 3]; 4]> {
        let (x, y) = (usize::try_from(left).ok()?, usize::try_from(top).ok()?);
        if x + 1 >= self.width || y + 1 >= self.height {
            return None;
        }
        let first = y * self.width + x;
        let upper = self.pixels.get(first..first + 2)?;
        let lower = self
            .pixels
            .get(first + self.width..first + self.width + 2)?;
        Some([upper[0], upper[1], lower[0], lower[1]])
    }

    #[cold]
    fn four_anywhere(&self, left: i32, top: i32) -> [[u8; 3]; 4] {
        [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(dx, dy)| {
            let place = |from: i32, by: i32| usize::try_from(from.saturating_add(by));
            match (place(left, dx), place(top, dy)) {
                (Ok(x), Ok(y)) if x < self.width && y < self.height => {
                    self.pixels[y * self.width + x]
                }
                _ => self.fill,
            }
        })
    }
}
