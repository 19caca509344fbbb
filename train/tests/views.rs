//! Random parts of pictures, and what a model sees of them.

use evaluate::images::{Filter, Part, Resampler, Rgb, decode, normalize_into};
use merge::random::{Draws, Sequence};
use train::augment::{RandomAugment, RandomCrop, TrainTransform, TwoViews, mirror, target_into};

use crate::fixture::path;

fn photograph() -> Rgb {
    let file = path("raw/coco/train2014/COCO_train2014_000000000001.jpg");
    decode(&std::fs::read(file).expect("the fixture is there")).expect("a picture")
}

fn draws(name: &str) -> Sequence {
    Draws::new(11, name).sequence()
}

fn blank(width: usize, height: usize) -> Rgb {
    Rgb {
        width,
        height,
        pixels: vec![7; 3 * width * height],
        alpha: None,
    }
}

fn without_operations(mut transform: TrainTransform) -> TrainTransform {
    transform.augment.operations.clear();
    transform
}

#[test]
fn parts_have_the_asked_area_and_aspect_and_lie_in_the_picture() {
    let (crop, mut draws) = (RandomCrop::default(), draws("crop"));
    let picture = blank(640, 480);
    let n = 5000;
    let (mut area, mut log_aspect, mut touches) = (0.0, 0.0, [0; 4]);
    for _ in 0..n {
        let part = crop.draw(&picture, &mut draws);
        assert!(part.left + part.width <= 640 && part.top + part.height <= 480);
        let (width, height) = (part.width as f64, part.height as f64);
        let share = width * height / (640.0 * 480.0);
        // Rounded to whole pixels.
        assert!((0.497..=1.0).contains(&share), "{share}");
        assert!((0.747..=1.337).contains(&(width / height)), "{part:?}");
        area += share;
        log_aspect += (width / height).ln();
        touches[0] += i32::from(part.left == 0);
        touches[1] += i32::from(part.left + part.width == 640);
        touches[2] += i32::from(part.top == 0);
        touches[3] += i32::from(part.top + part.height == 480);
    }
    // Large parts fit less often, and wide ones more often in a wide picture.
    assert!((0.55..0.72).contains(&(area / f64::from(n))), "{area}");
    assert!(log_aspect > 0.0);
    assert!(touches.iter().all(|&count| count > 0), "{touches:?}");
}

#[test]
fn places_of_a_part_are_uniform() {
    let crop = RandomCrop {
        area: [0.25, 0.25],
        aspect: [1.0, 1.0],
    };
    let (picture, mut draws) = (blank(10, 10), draws("places"));
    let mut counts = [[0; 6]; 2];
    for _ in 0..6000 {
        let part = crop.draw(&picture, &mut draws);
        assert_eq!((part.width, part.height), (5, 5));
        counts[0][part.left] += 1;
        counts[1][part.top] += 1;
    }
    // Five standard errors of sqrt(6000 · 1/6 · 5/6).
    for count in counts.as_flattened() {
        assert!((count - 1000_i32).abs() < 145, "{counts:?}");
    }
}

#[test]
fn a_picture_that_no_part_fits_into_gives_its_center() {
    let crop = RandomCrop::default();
    // No part of half of the area is 4:3 or narrower.
    let part = crop.draw(&blank(300, 12), &mut draws("wide"));
    let expected = Part {
        left: 142,
        top: 0,
        width: 16,
        height: 12,
    };
    assert_eq!(part, expected);
    let part = crop.draw(&blank(12, 300), &mut draws("tall"));
    assert_eq!((part.left, part.width), (0, 12));
    assert_eq!((part.top, part.height), (142, 16));
    let part = crop.draw(&blank(1, 1), &mut draws("one"));
    assert_eq!((part.width, part.height), (1, 1));
}

#[test]
fn a_view_is_the_part_resized_mirrored_or_not_and_normalized() {
    let picture = photograph();
    let transform = without_operations(TrainTransform::new(48));
    let mut n_mirrored = 0;
    for index in 0..40 {
        let name = format!("view {index}");
        let mut values = vec![0.0; transform.len()];
        transform.apply_into(&picture, &mut draws(&name), &mut values);
        let part = transform.crop.draw(&picture, &mut draws(&name));
        let from = (part.width, part.height);
        let mut view = Resampler::new(from, (48, 48)).resize_part(&picture, part);
        let mut plain = vec![0.0; transform.len()];
        normalize_into(&view, &mut plain);
        mirror(&mut view);
        let mut mirrored = vec![0.0; transform.len()];
        normalize_into(&view, &mut mirrored);
        assert_ne!(plain, mirrored);
        assert!(values == plain || values == mirrored, "{index}");
        n_mirrored += i32::from(values == mirrored);
    }
    // Five standard errors of sqrt(40 / 4).
    assert!((n_mirrored - 20).abs() < 16, "{n_mirrored}");
}

#[test]
fn the_same_draws_give_the_same_view_and_others_another() {
    let (picture, transform) = (photograph(), TrainTransform::new(64));
    let view = |name: &str| transform.view(&picture, &mut draws(name));
    assert_eq!(view("example 3"), view("example 3"));
    assert_ne!(view("example 3"), view("example 4"));
    assert_eq!((view("a").width, view("a").height), (64, 64));
}

#[test]
fn operations_see_the_resized_view() {
    let (picture, mut transform) = (photograph(), TrainTransform::new(32));
    transform.augment = RandomAugment {
        n_operations: 1,
        probability: 1.0,
        operations: vec![train::augment::Operation::Brightness],
        ..RandomAugment::default()
    };
    let bright = transform.view(&picture, &mut draws("x"));
    let plain = without_operations(transform).view(&picture, &mut draws("x"));
    assert_eq!(bright.pixels.len(), 3 * 32 * 32);
    assert_eq!(plain.pixels.len(), bright.pixels.len());
    for (&bright, &plain) in bright.pixels.iter().zip(&plain.pixels) {
        let expected = (f64::from(plain) * 1.36).min(255.0) as u8;
        assert_eq!(bright, expected);
    }
}

#[test]
fn two_views_show_the_same_part_with_their_filters() {
    let picture = photograph();
    let mut views = TwoViews::new(64, 32);
    views.train.augment.operations.clear();
    views.train.flip = 1.0;
    let [view, target] = views.views(&picture, &mut draws("two"));
    let mut mirrored = picture.clone();
    mirror(&mut mirrored);
    let mut sequence = draws("two");
    sequence.uniform();
    // The draws of two operations go nowhere, because there are no such operations.
    sequence.below(0);
    sequence.below(0);
    let part = views.train.crop.draw(&mirrored, &mut sequence);
    let from = (part.width, part.height);
    let resized = |side, filter| {
        Resampler::with_filter(from, (side, side), filter).resize_part(&mirrored, part)
    };
    assert_eq!(view, resized(64, Filter::Bilinear));
    assert_eq!(target, resized(32, Filter::Lanczos));

    let mut values = vec![0.0; 3 * 64 * 64];
    let mut target_values = vec![0.0; 3 * views.target_side * views.target_side];
    views.apply_into(&picture, &mut draws("two"), &mut values, &mut target_values);
    let mut expected = vec![0.0; values.len()];
    normalize_into(&view, &mut expected);
    assert_eq!(values, expected);
    let pixel = f64::from(target.pixels[0]);
    assert!((f64::from(target_values[0]) - (0.8 * pixel / 255.0 + 0.1)).abs() < 1e-7);
}

#[test]
fn the_tokenizer_sees_values_from_a_tenth_to_nine_tenths() {
    let picture = Rgb {
        width: 2,
        height: 1,
        pixels: vec![0, 51, 255, 255, 0, 51],
        alpha: None,
    };
    let mut values = [0.0; 6];
    target_into(&picture, &mut values);
    let expected = [0.1, 0.9, 0.26, 0.1, 0.9, 0.26];
    for (value, expected) in values.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-6_f32, "{values:?}");
    }
}

#[test]
fn mirroring_twice_changes_nothing() {
    let mut picture = photograph();
    let before = picture.clone();
    mirror(&mut picture);
    assert_eq!(picture.pixel(0, 5), before.pixel(before.width - 1, 5));
    mirror(&mut picture);
    assert_eq!(picture, before);
}
