//! Recognizes picture formats, and decodes all but JPEG.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageReader};

use super::{Rgb, jpeg};
use crate::{Error, Result};

/// The most pixels a picture may have, Pillow's own limit: beyond it a small file is more likely an
/// attack on the memory than a photograph.
pub const MAX_PIXELS: u64 = 178_956_970;

/// The most memory that a decoder may ask for: eight bytes a pixel and what it needs itself.
const MAX_DECODER_BYTES: u64 = 8 * MAX_PIXELS + (64 << 20);

/// The file format of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
    /// GIF; the first frame counts.
    Gif,
    /// WebP.
    WebP,
    /// Windows bitmap.
    Bmp,
}

impl Format {
    /// The format by the first bytes of a file; names are not believed.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [b'G', b'I', b'F', b'8', ..] => Some(Self::Gif),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::WebP),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ => None,
        }
    }

    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
        }
    }

    fn of_decoder(self) -> Option<image::ImageFormat> {
        match self {
            Self::Jpeg => None,
            Self::Png => Some(image::ImageFormat::Png),
            Self::Gif => Some(image::ImageFormat::Gif),
            Self::WebP => Some(image::ImageFormat::WebP),
            Self::Bmp => Some(image::ImageFormat::Bmp),
        }
    }
}

/// Decodes the bytes of a picture file.
///
/// The pixels are those of Pillow's `Image.open(file).convert("RGB")`: gray and palettes are
/// expanded, CMYK is converted with its simple formula, alpha is dropped, 16-bit color keeps its
/// upper byte, 16-bit gray is clipped at 255; an orientation tag is ignored.
///
/// # Errors
/// [`Error::Picture`] when the bytes are no picture, or a broken or truncated one;
/// [`Error::PictureTooLarge`] when it has more than [`MAX_PIXELS`] pixels. Pixels have no memory
/// before that is known.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    match Format::of(bytes) {
        Some(Format::Jpeg) => jpeg::decode(bytes),
        Some(format) => decode_other(bytes, format),
        None => Err(unknown(bytes)),
    }
}

/// The format, width and height, from the head of the file alone.
///
/// # Errors
/// As [`decode`]'s, but damage behind the head is not seen.
pub fn size(bytes: &[u8]) -> Result<(Format, usize, usize)> {
    let Some(format) = Format::of(bytes) else {
        return Err(unknown(bytes));
    };
    let (width, height) = match format.of_decoder() {
        None => jpeg::size(bytes)?,
        Some(kind) => {
            let (width, height) = decoder(bytes, kind)?.dimensions();
            (width as usize, height as usize)
        }
    };
    check_size(width, height)?;
    Ok((format, width, height))
}

fn unknown(bytes: &[u8]) -> Error {
    if let Some(looks_like) = merge::io::not_fetched(bytes) {
        return broken(format!("it {looks_like}"));
    }
    let fault = if bytes.is_empty() {
        "it has no bytes"
    } else {
        "it is not JPEG, PNG, GIF, WebP or BMP"
    };
    broken(fault)
}

pub(super) fn broken(fault: impl ToString) -> Error {
    Error::Picture {
        fault: fault.to_string(),
    }
}

/// Refuses a picture without pixels and one with too many.
pub(super) fn check_size(width: usize, height: usize) -> Result<()> {
    let n_pixels = (width as u64).saturating_mul(height as u64);
    if n_pixels == 0 {
        return Err(broken("it has no pixels"));
    }
    if n_pixels > MAX_PIXELS {
        return Err(Error::PictureTooLarge { width, height });
    }
    Ok(())
}

fn decoder(bytes: &[u8], format: image::ImageFormat) -> Result<impl ImageDecoder> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    reader.into_decoder().map_err(broken)
}

fn decode_other(bytes: &[u8], format: Format) -> Result<Rgb> {
    let Some(kind) = format.of_decoder() else {
        return jpeg::decode(bytes);
    };
    let decoder = decoder(bytes, kind)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let is_deep_gray = decoder.original_color_type() == ExtendedColorType::L16;
    let picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let gray = |values: &mut dyn Iterator<Item = u8>| -> Vec<u8> {
        let mut pixels = Vec::with_capacity(3 * width * height);
        values.for_each(|value| pixels.extend([value; 3]));
        pixels
    };
    let deep = |value: u16| match is_deep_gray {
        true => value.min(255) as u8,
        false => (value >> 8) as u8,
    };
    let alpha = alpha(&picture);
    let pixels = match picture {
        DynamicImage::ImageRgb8(buffer) => buffer.into_raw(),
        DynamicImage::ImageRgba8(buffer) => without_alpha(buffer.as_raw(), |value| value),
        DynamicImage::ImageRgb16(buffer) => buffer.iter().map(|&value| deep(value)).collect(),
        DynamicImage::ImageRgba16(buffer) => without_alpha(buffer.as_raw(), deep),
        DynamicImage::ImageLuma8(buffer) => gray(&mut buffer.iter().copied()),
        DynamicImage::ImageLumaA8(buffer) => gray(&mut buffer.iter().step_by(2).copied()),
        DynamicImage::ImageLuma16(buffer) => gray(&mut buffer.iter().map(|&value| deep(value))),
        DynamicImage::ImageLumaA16(buffer) => {
            gray(&mut buffer.iter().step_by(2).map(|&value| deep(value)))
        }
        _ => return Err(broken("its colors are of an unknown kind")),
    };
    Ok(Rgb {
        width,
        height,
        pixels,
        alpha,
    })
}

/// The opacity of each pixel; none of a picture that is opaque.
fn alpha(picture: &DynamicImage) -> Option<Vec<u8>> {
    let deep = |value: u16| (value >> 8) as u8;
    let alpha: Vec<u8> = match picture {
        DynamicImage::ImageRgba8(buffer) => every(buffer.as_raw(), 4, |value| value),
        DynamicImage::ImageRgba16(buffer) => every(buffer.as_raw(), 4, deep),
        DynamicImage::ImageLumaA8(buffer) => every(buffer.as_raw(), 2, |value| value),
        DynamicImage::ImageLumaA16(buffer) => every(buffer.as_raw(), 2, deep),
        _ => return None,
    };
    alpha.iter().any(|&value| value != u8::MAX).then_some(alpha)
}

/// Every `n`-th value, the last of each `n`.
fn every<T: Copy>(values: &[T], n: usize, to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let last = values.iter().skip(n - 1).step_by(n);
    last.map(|&value| to_byte(value)).collect()
}

fn without_alpha<T: Copy>(values: &[T], to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let (pixels, _) = values.as_chunks::<4>();
    let mut kept = Vec::with_capacity(3 * pixels.len());
    for &[red, green, blue, _] in pixels {
        kept.extend([to_byte(red), to_byte(green), to_byte(blue)]);
    }
    kept
}
