//! Affine maps of a picture as Pillow's `Image.transform` does them.
//!
//! A map leads from the result to the source: the pixel at `(x, y)` comes from
//! `(a x + b y + c, d x + e y + f)`. [`warp`](super::warp) is OpenCV's and rounds otherwise.

use evaluate::images::Rgb;

/// The color of places outside of the picture in AutoAugment.
const GRAY: [u8; 3] = [128; 3];

/// The same by Pillow's own habit.
const BLACK: [u8; 3] = [0; 3];

/// One in the fixed point of places.
const ONE: f64 = 65_536.0;

/// Rows slide by `amount` of their number, bicubic.
pub fn shear_x(picture: &mut Rgb, amount: f64) {
    bicubic(picture, [1.0, amount, 0.0, 0.0, 1.0, 0.0]);
}

/// Columns slide by `amount` of their number, bicubic.
pub fn shear_y(picture: &mut Rgb, amount: f64) {
    bicubic(picture, [1.0, 0.0, 0.0, amount, 1.0, 0.0]);
}

/// Everything slides by `share` of the width, to the nearest pixel.
pub fn translate_x(picture: &mut Rgb, share: f64) {
    let by = share * picture.width as f64;
    slide(picture, [by, 0.0], GRAY);
}

/// Everything slides by `share` of the height, to the nearest pixel.
pub fn translate_y(picture: &mut Rgb, share: f64) {
    let by = share * picture.height as f64;
    slide(picture, [0.0, by], GRAY);
}

/// Rows slide by `x` of their number and columns by `y` of theirs, to the nearest pixel; what comes from
/// outside is black.
pub fn shear_nearest(picture: &mut Rgb, [x, y]: [f64; 2]) {
    nearest(picture, [1.0, x, 0.0, y, 1.0, 0.0], BLACK);
}

/// Slides a picture by these pixels; black comes in from outside.
pub fn translate(picture: &mut Rgb, by: [f64; 2]) {
    slide(picture, by, BLACK);
}

/// As [`rotate`]; black comes in from outside.
pub fn rotate_on_black(picture: &mut Rgb, degrees: f64) {
    turn(picture, degrees, BLACK);
}

/// Counter-clockwise about the center, each pixel from the nearest one, as `Image.rotate` does it; what
/// comes from outside is gray.
pub fn rotate(picture: &mut Rgb, degrees: f64) {
    turn(picture, degrees, GRAY);
}

fn turn(picture: &mut Rgb, degrees: f64, fill: [u8; 3]) {
    let degrees = degrees.rem_euclid(360.0);
    if degrees == 0.0 {
        return;
    }
    let angle = -degrees.to_radians();
    // Python's `round(x, 15)`.
    let rounded = |value: f64| format!("{value:.15}").parse().unwrap_or(value);
    let (cos, sin): (f64, f64) = (rounded(angle.cos()), rounded(angle.sin()));
    let minus_sin: f64 = rounded(-angle.sin());
    let (x, y) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
    let c = cos * -x + sin * -y + 0.0 + x;
    let f = minus_sin * -x + cos * -y + 0.0 + y;
    nearest(picture, [cos, sin, c, minus_sin, cos, f], fill);
}

/// The result's pixels, each asked for by column and row; `None` is what lies outside.
fn remade(picture: &mut Rgb, fill: [u8; 3], at: impl Fn(&Rgb, usize, usize) -> Option<[u8; 3]>) {
    let source = picture.clone();
    let width = picture.width.max(1);
    for (index, pixel) in picture.pixels.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        *pixel = at(&source, index % width, index / width).unwrap_or(fill);
    }
}

/// Places in 16 bits behind the point.
fn nearest(picture: &mut Rgb, [a, b, c, d, e, f]: [f64; 6], fill: [u8; 3]) {
    let fixed = |value: f64| (value * ONE + 0.5).floor() as i64;
    let (ax, bx, ay, by) = (fixed(a), fixed(b), fixed(d), fixed(e));
    let x0 = fixed(c + a * 0.5 + b * 0.5);
    let y0 = fixed(f + d * 0.5 + e * 0.5);
    remade(picture, fill, |source, x, y| {
        let (x, y) = (x as i64, y as i64);
        let from_x = usize::try_from((x0 + bx * y + ax * x) >> 16).ok()?;
        let from_y = usize::try_from((y0 + by * y + ay * x) >> 16).ok()?;
        source.pixel(from_x, from_y)
    });
}

/// A map without shear, whose places are added up in `f64`.
fn slide(picture: &mut Rgb, [by_x, by_y]: [f64; 2], fill: [u8; 3]) {
    let places = |n: usize, by: f64| {
        let mut place = by + 0.5;
        let mut places = Vec::with_capacity(n);
        for _ in 0..n {
            places.push((place >= 0.0).then_some(place as usize));
            place += 1.0;
        }
        places
    };
    let (columns, rows) = (places(picture.width, by_x), places(picture.height, by_y));
    remade(picture, fill, |source, x, y| {
        source.pixel(columns[x]?, rows[y]?)
    });
}

/// Cubic convolution with a = -1 over four by four pixels; those at the border are repeated.
fn bicubic(picture: &mut Rgb, [a, b, c, d, e, f]: [f64; 6]) {
    remade(picture, GRAY, |source, x, y| {
        let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
        let (x, y) = (a * x + b * y + c, d * x + e * y + f);
        let (width, height) = (source.width as f64, source.height as f64);
        if x < 0.0 || x >= width || y < 0.0 || y >= height {
            return None;
        }
        let (x, y) = (x - 0.5, y - 0.5);
        let (left, top) = (x.floor(), y.floor());
        let (dx, dy) = (x - left, y - top);
        let (left, top) = (left as i64 - 1, top as i64 - 1);
        let columns: [usize; 4] = std::array::from_fn(|i| clipped(left + i as i64, source.width));
        let pixels = source.pixels.as_chunks::<3>().0;
        let row = |at: usize, color: usize| {
            let of = |column: usize| f64::from(pixels[at * source.width + column][color]);
            cubic(columns.map(of), dx)
        };
        Some(std::array::from_fn(|color| {
            let mut rows = [row(clipped(top, source.height), color); 4];
            for i in 1..4 {
                let at = top + i as i64;
                rows[i] = match usize::try_from(at) {
                    Ok(at) if at < source.height => row(at, color),
                    _ => rows[i - 1],
                };
            }
            cubic(rows, dy).clamp(0.0, 255.0) as u8
        }))
    });
}

fn clipped(at: i64, n: usize) -> usize {
    usize::try_from(at).unwrap_or(0).min(n.saturating_sub(1))
}

fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let p1 = v2;
    let p2 = -v1 + v3;
    let p3 = 2.0 * (v1 - v2) + v3 - v4;
    let p4 = -v1 + v2 - v3 + v4;
    p1 + d * (p2 + d * (p3 + d * p4))
}
