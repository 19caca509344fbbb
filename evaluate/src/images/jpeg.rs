//! JPEG through the same C code that Pillow uses, so that pixels agree bit by bit.

use std::cell::Cell;
use std::io::{BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mozjpeg::{ColorSpace, Decompress};

use super::Rgb;
use super::decode::{broken, check_size};
use crate::{Error, Result};

/// The bytes of a file, and whether the decoder wanted more than there are. The C code invents an
/// end of image then, and fills the rest with gray.
struct Source<'a> {
    bytes: &'a [u8],
    ran_dry: &'a Cell<bool>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.bytes.is_empty() {
            self.ran_dry.set(true);
        }
        Ok(self.bytes)
    }

    fn consume(&mut self, n_bytes: usize) {
        self.bytes = self.bytes.get(n_bytes..).unwrap_or_default();
    }
}

/// Width and height by the frame header.
pub fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    guarded(bytes, |source| {
        let picture = Decompress::builder().from_reader(source).map_err(broken)?;
        Ok(picture.size())
    })
}

/// Decodes a JPEG of one, three or four components.
pub fn decode(bytes: &[u8]) -> Result<Rgb> {
    guarded(bytes, |source| {
        let picture = Decompress::builder().from_reader(source).map_err(broken)?;
        let (width, height) = picture.size();
        check_size(width, height)?;
        let target = match picture.color_space() {
            ColorSpace::JCS_GRAYSCALE => ColorSpace::JCS_GRAYSCALE,
            ColorSpace::JCS_RGB | ColorSpace::JCS_YCbCr => ColorSpace::JCS_RGB,
            ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => ColorSpace::JCS_CMYK,
            _ => return Err(broken("its colors are of an unknown kind")),
        };
        let mut rows = picture.to_colorspace(target).map_err(broken)?;
        let values: Vec<u8> = rows.read_scanlines().map_err(broken)?;
        rows.finish().map_err(broken)?;
        let pixels = match target {
            ColorSpace::JCS_RGB => values,
            ColorSpace::JCS_GRAYSCALE => {
                let mut pixels = vec![0; 3 * values.len()];
                for (pixel, &value) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(&values) {
                    *pixel = [value; 3];
                }
                pixels
            }
            _ => from_cmyk(&values),
        };
        Ok(Rgb {
            width,
            height,
            pixels,
            alpha: None,
        })
    })
}

/// Runs the C code. Its way out of an error is to unwind, with a message of its own.
fn guarded<T>(bytes: &[u8], work: impl FnOnce(Source<'_>) -> Result<T>) -> Result<T> {
    let ran_dry = Cell::new(false);
    let source = Source {
        bytes,
        ran_dry: &ran_dry,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| work(source)));
    match outcome {
        // A size that is refused needs no further reason.
        Ok(Err(error @ Error::PictureTooLarge { .. })) => Err(error),
        _ if ran_dry.get() => Err(broken("it is truncated")),
        Ok(result) => result,
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map_or("", String::as_str);
            let reason = message.trim_start_matches("libjpeg fatal error: ");
            Err(broken(if reason.is_empty() {
                "the JPEG decoder gave up"
            } else {
                reason
            }))
        }
    }
}

/// Four-component files hold inverted values, by Adobe's habit; `255 - value` is the ink.
fn from_cmyk(values: &[u8]) -> Vec<u8> {
    let (pixels, _) = values.as_chunks::<4>();
    let mut rgb = Vec::with_capacity(3 * pixels.len());
    for &[cyan, magenta, yellow, light] in pixels {
        rgb.extend([cyan, magenta, yellow].map(|value| {
            let ink = u32::from(255 - value);
            let product = ink * u32::from(light) + 128;
            let shade = ((product >> 8) + product) >> 8;
            u32::from(light).saturating_sub(shade) as u8
        }));
    }
    rgb
}
