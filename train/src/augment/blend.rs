//! Colors as Pillow's `ImageEnhance` changes them: towards or away from a plainer picture.

use evaluate::images::Rgb;

use super::color::sharpness;

/// Brightness in Pillow's integers: `(19595 r + 38470 g + 7471 b + 32768) / 65536`.
#[must_use]
pub fn gray([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue);
    ((sum + 0x8000) >> 16) as u8
}

/// Each pixel becomes `plain + factor (pixel - plain)`, truncated and clipped.
fn blend(picture: &mut Rgb, factor: f64, plain: impl Fn([u8; 3]) -> u8) {
    let factor = factor as f32;
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        let plain = f32::from(plain(*pixel));
        *pixel = pixel.map(|value| {
            let moved = plain + factor * (f32::from(value) - plain);
            moved.clamp(0.0, 255.0) as u8
        });
    }
}

/// `PIL.ImageEnhance.Color`: 0 is gray, 1 the picture.
pub fn saturate(picture: &mut Rgb, factor: f64) {
    blend(picture, factor, gray);
}

/// `PIL.ImageEnhance.Contrast`: 0 is the mean gray of the picture, 1 the picture.
pub fn contrast(picture: &mut Rgb, factor: f64) {
    let pixels = picture.pixels.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(gray(pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    blend(picture, factor, |_| mean);
}

/// `PIL.ImageEnhance.Brightness`: 0 is black, 1 the picture.
pub fn brighten(picture: &mut Rgb, factor: f64) {
    blend(picture, factor, |_| 0);
}

/// `PIL.ImageEnhance.Sharpness`: 0 is a smoothed picture, 1 the picture.
pub fn sharpen(picture: &mut Rgb, factor: f64) {
    sharpness(picture, factor, false);
}

/// Every pixel becomes its gray.
pub fn to_gray(picture: &mut Rgb) {
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        *pixel = [gray(*pixel); 3];
    }
}

/// Keeps the upper `bits` of each value.
pub fn posterize(picture: &mut Rgb, bits: u32) {
    let lost = 8_u32.saturating_sub(bits);
    let mask = (0xff_u32 << lost) as u8;
    for value in &mut picture.pixels {
        *value &= mask;
    }
}

/// Values from `threshold` on are inverted.
pub fn solarize(picture: &mut Rgb, threshold: f64) {
    for value in &mut picture.pixels {
        if f64::from(*value) >= threshold {
            *value = 255 - *value;
        }
    }
}

/// Every value becomes 255 less it.
pub fn invert(picture: &mut Rgb) {
    for value in &mut picture.pixels {
        *value = 255 - *value;
    }
}
