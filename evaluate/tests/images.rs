//! Pictures against Pillow 10.4, as recorded in `raw/resized.json`.

use evaluate::Error;
use evaluate::images::{self, Filter, MAX_PIXELS, Part, Resampler, Rgb, Transform};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::fixture::{integers, json, list, path};

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path("raw").join(name)).expect("the fixture is there")
}

const PROGRESSIVE: &str = "coco/train2014/COCO_train2014_000000257055.jpg";
const BASELINE: &str = "coco/train2014/COCO_train2014_000000000001.jpg";

#[test]
fn every_picture_has_the_pixels_of_pillow_before_and_after_resizing() {
    let expected = json("raw/resized.json");
    let expected = expected.as_object().expect("an object");
    assert_eq!(expected.len(), 110);
    for (name, expected) in expected {
        let bytes = bytes(name);
        let picture = images::decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(sha256(&picture.pixels), expected["rgb"], "{name}");
        let (format, width, height) = images::size(&bytes).expect("a size");
        assert_eq!(format.name(), expected["format"], "{name}");
        assert_eq!(
            expected["size"],
            serde_json::json!([width, height]),
            "{name}"
        );
        for (size, to) in [
            ("224x224", (224, 224)),
            ("37x53", (37, 53)),
            ("384x20", (384, 20)),
        ] {
            let resized = Resampler::new((width, height), to).resize(&picture);
            assert_eq!(sha256(&resized.pixels), expected[size], "{name} to {size}");
        }
    }
}

#[test]
fn parts_of_a_picture_have_the_pixels_of_pillow_with_every_filter() {
    // Made by `tests/augment_reference.py`.
    let pictures = path("augment/pictures.safetensors");
    let pictures = candle_core::safetensors::load(pictures, &candle_core::Device::Cpu);
    let tensor = &pictures.expect("tensors")["p5"];
    let (height, width, _) = tensor.dims3().expect("height, width, color");
    let pixels = tensor.flatten_all().and_then(|t| t.to_vec1::<u8>());
    let picture = Rgb {
        width,
        height,
        pixels: pixels.expect("bytes"),
        alpha: None,
    };
    let cases = json("augment/crops.json");
    assert_eq!(list(&cases).len(), 7 * 3 * 3);
    for case in list(&cases) {
        let numbers = |key: &str| -> Vec<usize> {
            let numbers = integers(&case[key]).into_iter();
            numbers.map(|n| n as usize).collect()
        };
        let (part, to) = (numbers("part"), numbers("to"));
        let part = Part {
            left: part[1],
            top: part[0],
            width: part[3],
            height: part[2],
        };
        let filter = match case["filter"].as_str() {
            Some("bilinear") => Filter::Bilinear,
            Some("bicubic") => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let resampler = Resampler::with_filter((part.width, part.height), (to[0], to[1]), filter);
        let resized = resampler.resize_part(&picture, part);
        assert_eq!((resized.width, resized.height), (to[0], to[1]));
        assert_eq!(sha256(&resized.pixels), case["sha256"], "{case}");
    }
}

#[test]
fn a_part_that_reaches_beyond_the_picture_ends_at_its_border() {
    let picture = images::decode(&bytes(BASELINE)).expect("a picture");
    let beyond = Part {
        left: 10,
        top: 20,
        width: 10_000,
        height: 10_000,
    };
    let within = beyond.within(&picture);
    assert_eq!(within.width + 10, picture.width);
    assert_eq!(within.height + 20, picture.height);
    let resampler = Resampler::new((8, 8), (5, 6));
    let resized = resampler.resize_part(&picture, beyond);
    assert_eq!(resized, resampler.resize_part(&picture, within));
}

#[test]
fn the_transform_is_the_resize_normalized_with_channels_first() {
    let picture = images::decode(&bytes(BASELINE)).expect("a picture");
    let transform = Transform::square(32);
    let values = transform.apply(&picture);
    let resized = Resampler::new((picture.width, picture.height), (32, 32)).resize(&picture);
    assert_eq!(values.len(), transform.len());
    for (index, pixel) in resized.pixels.chunks(3).enumerate() {
        for (channel, &value) in pixel.iter().enumerate() {
            let expected = (f32::from(value) / 255.0 - 0.5) / 0.5;
            assert_eq!(values[channel * 1024 + index], expected);
        }
    }
}

#[test]
fn a_truncated_jpeg_is_an_error_wherever_it_is_cut() {
    for name in [BASELINE, PROGRESSIVE] {
        let bytes = bytes(name);
        for length in (0..bytes.len())
            .step_by(61)
            .chain([bytes.len() - 2, bytes.len() - 1])
        {
            let outcome = images::decode(&bytes[..length]);
            assert!(
                matches!(outcome, Err(Error::Picture { .. })),
                "{name} cut at {length}"
            );
        }
    }
}

#[test]
fn other_files_are_no_pictures() {
    for (bytes, reason) in [
        (&b""[..], "no bytes"),
        (b"<html>", "it is a web page, not the file"),
        (b"something", "not JPEG"),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"GIF89a", ""),
        (b"BM", ""),
        (b"RIFF\0\0\0\0WEBP", ""),
    ] {
        let error = images::decode(bytes).expect_err("no picture").to_string();
        assert!(
            error.starts_with("the picture cannot be decoded: "),
            "{error}"
        );
        assert!(error.contains(reason), "{error}");
    }
}

/// A PNG that claims a size and holds one byte of data.
fn png_of_size(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(width.to_be_bytes());
    png.extend(height.to_be_bytes());
    png.extend([8, 2, 0, 0, 0]);
    let crc = crc32(&png[12..]);
    png.extend(crc.to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82");
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn a_decompression_bomb_is_refused_by_its_head() {
    let mut jpeg = bytes(BASELINE);
    let frame = (jpeg.windows(2).position(|two| two == [0xff, 0xc0])).expect("a frame header");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xf0, 0, 0xf0, 0]);
    let mut gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    gif.extend(b",\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;");
    for bomb in [jpeg, png_of_size(20_000, 20_000), gif] {
        let error = images::decode(&bomb).expect_err("too large");
        assert!(matches!(error, Error::PictureTooLarge { .. }), "{error}");
        assert!(error.to_string().contains(&MAX_PIXELS.to_string()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes_never_panic(
        progressive in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = bytes(if progressive { PROGRESSIVE } else { BASELINE });
        for (index, value) in flips {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if let Ok(picture) = images::decode(&bytes) {
            prop_assert_eq!(picture.pixels.len(), 3 * picture.width * picture.height);
        }
    }
}
