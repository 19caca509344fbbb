//! Operations on pictures against OpenCV 4 and numpy: fixtures/augment, made by
//! `tests/augment_reference.py`.

use std::collections::BTreeMap;

use candle_core::Device;
use evaluate::images::Rgb;
use merge::random::Draws;
use train::augment::{Affine, Operation, RandomAugment, Slips, warp};

use crate::fixture::path;

/// Arrays of a file as pictures.
pub fn pictures(name: &str) -> BTreeMap<String, Rgb> {
    let tensors = candle_core::safetensors::load(path(name), &Device::Cpu).expect("tensors");
    let picture = |(name, tensor): (String, candle_core::Tensor)| {
        let (height, width, _) = tensor.dims3().expect("height, width, color");
        let pixels = tensor.flatten_all().and_then(|t| t.to_vec1());
        let pixels = pixels.expect("bytes");
        (
            name,
            Rgb {
                width,
                height,
                pixels,
                alpha: None,
            },
        )
    };
    tensors.into_iter().map(picture).collect()
}

fn operation(name: &str) -> Operation {
    match name {
        "auto_contrast" => Operation::AutoContrast,
        "equalize" => Operation::Equalize,
        "brightness" => Operation::Brightness,
        "sharpness" | "sharpness_wrapping" => Operation::Sharpness,
        "shear_x" => Operation::ShearX,
        "shear_y" => Operation::ShearY,
        "translate_x" => Operation::TranslateX,
        "translate_y" => Operation::TranslateY,
        "rotate" => Operation::Rotate,
        _ => panic!("no operation {name}"),
    }
}

#[test]
fn every_operation_gives_the_bytes_of_opencv_and_numpy() {
    let pictures = pictures("augment/pictures.safetensors");
    let results = self::pictures("augment/results.safetensors");
    assert_eq!((pictures.len(), results.len()), (8, 8 * 31));
    for (name, expected) in &results {
        let mut parts = name.split('/');
        let mut picture = pictures[parts.next().unwrap_or_default()].clone();
        let kind = parts.next().unwrap_or_default();
        let strength = parts.next().map_or(0.0, |s| s.parse().expect("a number"));
        let slips = Slips {
            sharpness_wraps: kind == "sharpness_wrapping",
            ..Slips::default()
        };
        operation(kind).apply(&mut picture, strength, slips);
        assert_eq!(&picture, expected, "{name}");
    }
}

#[test]
fn wrapping_and_clipping_differ_where_a_value_exceeds_a_byte() {
    let results = pictures("augment/results.safetensors");
    let differ = |p: usize| {
        results[&format!("p{p}/sharpness/1.36")]
            != results[&format!("p{p}/sharpness_wrapping/1.36")]
    };
    // The third is noise, the last but one of a single color.
    assert!(differ(3));
    assert!(!differ(6));
}

#[test]
fn strengths_at_the_published_magnitude_are_those_of_the_specification() {
    use Operation::{AutoContrast, Brightness, Rotate, Sharpness, ShearX, ShearY};
    let close = |operation: Operation, expected: f64| {
        let found = operation.strength(7.0);
        assert!((found - expected).abs() < 1e-12, "{operation:?}: {found}");
    };
    for (operation, expected) in [
        (AutoContrast, 0.0),
        (Brightness, 1.36),
        (Sharpness, 1.36),
        (ShearX, 0.21),
        (ShearY, 0.21),
        (Operation::TranslateX, 7.0),
        (Operation::TranslateY, 7.0),
        (Rotate, 21.0),
    ] {
        close(operation, expected);
    }
    assert_eq!(Operation::ALL.iter().filter(|o| o.has_sign()).count(), 5);
}

#[test]
fn a_translation_by_whole_pixels_moves_them_and_fills_up() {
    let pixels: Vec<u8> = (0..12).flat_map(|value| [value, value + 50, 200]).collect();
    let mut picture = Rgb {
        width: 4,
        height: 3,
        pixels,
        alpha: None,
    };
    let before = picture.clone();
    warp(&mut picture, Affine::translate_x(-1.0), [1, 2, 3]);
    for y in 0..3 {
        assert_eq!(picture.pixel(0, y), Some([1, 2, 3]));
        for x in 1..4 {
            assert_eq!(picture.pixel(x, y), before.pixel(x - 1, y));
        }
    }
}

#[test]
fn a_quarter_turn_is_counter_clockwise() {
    let mut picture = Rgb {
        width: 3,
        height: 3,
        pixels: (0..27).collect(),
        alpha: None,
    };
    let before = picture.clone();
    let map = Affine::rotate(90.0, &picture);
    warp(&mut picture, map, [128; 3]);
    // The center is at (1.5, 1.5) in coordinates of pixels' centers: the right column goes up to the
    // row y = 3 - x = 1, and the middle row's place x = y is kept.
    for y in 1..3 {
        for x in 1..3 {
            assert_eq!(picture.pixel(x, y), before.pixel(3 - y, x), "{x} {y}");
        }
    }
}

#[test]
fn a_map_onto_a_line_has_no_way_back_and_does_no_harm() {
    let mut picture = Rgb {
        width: 5,
        height: 4,
        pixels: (0..60).collect(),
        alpha: None,
    };
    let first = picture.pixel(0, 0);
    warp(&mut picture, Affine([[1.0, 1.0, 0.0]; 2]), [9; 3]);
    assert_eq!(picture.pixel(4, 3), first);
    let far = Affine([[1.0, 0.0, 1e300], [0.0, 1.0, f64::NAN]]);
    warp(&mut picture, far, [9; 3]);
    assert_eq!(picture.pixels.len(), 60);
}

#[test]
fn operations_are_drawn_alike_and_each_is_done_half_of_the_times() {
    let augment = RandomAugment::default();
    let mut draws = Draws::new(3, "operations").sequence();
    let n = 20_000;
    let mut counts = BTreeMap::new();
    let mut n_negative = 0;
    for _ in 0..n {
        let done = augment.draw(&mut draws);
        assert!(done.len() <= 2);
        for (operation, strength) in done {
            *counts.entry(format!("{operation:?}")).or_insert(0_u32) += 1;
            assert!((strength.abs() - operation.strength(7.0)).abs() < 1e-12);
            assert!(strength >= 0.0 || operation.has_sign());
            n_negative += u32::from(strength < 0.0);
        }
    }
    assert_eq!(counts.len(), 10);
    // 2 n places, each with a probability of 1/2 · 1/10: five standard errors.
    let expected = f64::from(n) * 2.0 * 0.05;
    let error = 5.0 * (f64::from(n) * 2.0 * 0.05 * 0.95).sqrt();
    for (operation, &count) in &counts {
        let off = (f64::from(count) - expected).abs();
        assert!(off < error, "{operation}: {count}");
    }
    // Half of five tenths of those.
    let off = (f64::from(n_negative) - 2.5 * expected).abs();
    assert!(off < 5.0 * (f64::from(n) * 0.25).sqrt(), "{n_negative}");
}

#[test]
fn nothing_to_draw_from_changes_nothing() {
    let augment = RandomAugment {
        operations: Vec::new(),
        ..RandomAugment::default()
    };
    assert!(augment.draw(&mut Draws::new(1, "x").sequence()).is_empty());
}
