//! Pictures that are not opaque, resized as Pillow resizes RGBA.

use super::{Resampler, Rgb};

/// The picture in the size of the resampler, without its transparency: colors are multiplied by their
/// share, resized with it, and divided by what it is then. `alpha` has a value for each pixel.
pub fn resize(resampler: &Resampler, picture: &Rgb, alpha: &[u8]) -> Rgb {
    let colors = |picture: &Rgb, alpha: &[u8], of: fn(u8, u8) -> u8| {
        let pixels = picture.pixels.as_chunks::<3>().0.iter().zip(alpha);
        pixels
            .flat_map(|(pixel, &alpha)| pixel.map(|value| of(value, alpha)))
            .collect()
    };
    let of_size = |pixels| Rgb {
        pixels,
        alpha: None,
        ..*picture
    };
    let gray = alpha.iter().flat_map(|&alpha| [alpha; 3]).collect();
    let alpha_then = resampler.resize(&of_size(gray));
    let alpha_then: Vec<u8> = alpha_then.pixels.into_iter().step_by(3).collect();
    let mut resized = resampler.resize(&of_size(colors(picture, alpha, multiplied)));
    resized.pixels = colors(&resized, &alpha_then, divided);
    resized
}

/// `value · alpha / 255`, rounded.
fn multiplied(value: u8, alpha: u8) -> u8 {
    let product = u32::from(value) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// `255 · value / alpha`, cut; a pixel that is wholly opaque or wholly transparent stays.
fn divided(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 | u8::MAX => value,
        alpha => (255 * u32::from(value) / u32::from(alpha)).min(255) as u8,
    }
}
