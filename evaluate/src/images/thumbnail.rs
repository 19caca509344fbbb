//! Small pictures for reports.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::{Resampler, Rgb};
use crate::{Error, Result};

/// A picture of at most `at_most` pixels a side, as a `data:` address of a PNG.
///
/// # Errors
/// When it has no pixels.
pub fn thumbnail(picture: &Rgb, at_most: usize) -> Result<String> {
    let longest = picture.width.max(picture.height).max(1);
    let scaled = |side: usize| match longest <= at_most {
        true => side,
        false => (side * at_most / longest).max(1),
    };
    let to = (scaled(picture.width), scaled(picture.height));
    let small = Resampler::new((picture.width, picture.height), to).resize(picture);
    let mut png = Vec::new();
    let encoder = PngEncoder::new(&mut png);
    let (width, height) = (small.width as u32, small.height as u32);
    encoder
        .write_image(&small.pixels, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| Error::Picture {
            fault: error.to_string(),
        })?;
    Ok(format!("data:image/png;base64,{}", base64(&png)))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for sextet in 0..4 {
            let index = word >> (18 - 6 * sextet) & 63;
            text.push(match sextet <= chunk.len() {
                true => char::from(ALPHABET[index as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
