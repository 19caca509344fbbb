//! Views of pictures that EVE is trained on.

use std::collections::BTreeMap;

use evaluate::images::{Part, Rgb, decode};
use fixtures::{Case, Raw, list, number, text};
use train::augment::{Operation, PictureChange, Slips, TrainTransform};

fixtures::golden_tests! {
    package: "train", set: "eve",
    parts_are_resized_and_mirrored_as_published: "resized_crop" => resized_crop,
    colors_change_as_published: "color_jitter" => color_jitter,
    every_operation_is_the_published_one: "rand_ops" => rand_ops,
    operations_follow_one_another_as_published: "rand_augment" => rand_augment,
}

/// A tensor of bytes by height, width and color as a picture.
fn picture(raw: &Raw) -> Rgb {
    Rgb {
        width: raw.shape[1],
        height: raw.shape[0],
        pixels: raw.bytes.clone(),
        alpha: None,
    }
}

/// Looks whether no byte is off by more than the case allows: one level, or none where it says `exact` alone.
fn assert_bytes(case: &Case, found: &Rgb, expected: &Raw, what: &str) {
    let expected = picture(expected);
    let sides = |picture: &Rgb| (picture.width, picture.height);
    assert_eq!(sides(found), sides(&expected), "{what}");
    let allowed = u8::from(case.text("tolerance").contains("at most 1 level"));
    let off = found.pixels.iter().zip(&expected.pixels);
    let largest = off.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    assert!(largest <= allowed, "{what}: off by {largest}");
}

fn resized_crop(case: &Case) {
    let bytes = std::fs::read(case.file("input")).expect("a picture file");
    let source = decode(&bytes).expect("a picture");
    let expected = case.tensors("expected");
    for (index, crop) in list(&case["params"]["crops"]).iter().enumerate() {
        let size = |name: &str| number(&crop[name]) as usize;
        let part = Part {
            left: size("left"),
            top: size("top"),
            width: size("width"),
            height: size("height"),
        };
        let view = TrainTransform::new(size("size")).part(&source, part, size("flip") != 0);
        assert_bytes(case, &view, &expected[&format!("crop{index}.u8")], "a crop");
    }
}

fn change(name: &str, factor: f64) -> PictureChange {
    match name {
        "brightness" => PictureChange::Brightness(factor),
        "contrast" => PictureChange::Contrast(factor),
        "saturation" => PictureChange::Saturation(factor),
        other => panic!("no change {other}"),
    }
}

fn color_jitter(case: &Case) {
    let pictures = case.tensors("expected");
    let source = picture(&pictures["jitter.in"]);
    for (index, draw) in list(&case["params"]["draws"]).iter().enumerate() {
        let found = list(&draw["order"])
            .iter()
            .fold(source.clone(), |view, name| {
                let name = text(name);
                change(name, number(&draw[name])).apply(view)
            });
        let expected = &pictures[&format!("jitter{index}.out")];
        assert_bytes(case, &found, expected, "jitter");
    }
    let mut n_single = 0;
    for (key, expected) in &pictures {
        let single = key.split_once('.');
        if let Some((name @ ("brightness" | "contrast" | "saturation"), factor)) = single {
            let found = change(name, factor.parse().expect("a factor")).apply(source.clone());
            assert_bytes(case, &found, expected, key);
            n_single += 1;
        }
    }
    assert!(n_single > 0);
}

fn operation(name: &str) -> Operation {
    let named = |operation: &Operation| format!("{operation:?}") == name;
    let found = Operation::ALL.into_iter().find(named);
    found.unwrap_or_else(|| panic!("no operation {name}"))
}

/// The strength of the published magnitude with a drawn sign: negative where an uniform draw exceeds a half, the
/// other way round for rotations.
fn strength(operation: Operation, sign: Option<f64>) -> f64 {
    let strength = operation.strength(7.0);
    let is_negative = sign.is_some_and(|sign| match operation {
        Operation::Rotate => sign < 0.5,
        _ => sign > 0.5,
    });
    if is_negative { -strength } else { strength }
}

fn rand_ops(case: &Case) {
    let pictures = case.tensors("expected");
    let sources = BTreeMap::from([("", "in"), (".black", "in_with_black")]);
    for row in list(&case.json("info")["operations"]) {
        let operation = operation(text(&row["op"]));
        let sign = row["sign_draw"].as_f64();
        assert_eq!(operation.has_sign(), sign.is_some(), "{operation:?}");
        let strength = strength(operation, sign);
        if let Some(given) = row["args"][0].as_f64() {
            assert!(
                (strength - given).abs() < 1e-12,
                "{operation:?}: {strength}"
            );
        }
        for (ending, source) in &sources {
            let key = format!("{}{ending}", text(&row["key"]));
            let Some(expected) = pictures.get(&key) else {
                continue;
            };
            let mut found = picture(&pictures[*source]);
            operation.apply(&mut found, strength, Slips::EVE);
            assert_bytes(case, &found, expected, &key);
        }
    }
    // Without the slip a picture without a black pixel is stretched, not made white.
    let mut found = picture(&pictures["in"]);
    Operation::AutoContrast.apply(&mut found, 0.0, Slips::default());
    let values = || found.pixels.iter().step_by(3);
    assert_eq!((values().min(), values().max()), (Some(&0), Some(&255)));
    assert!(values().any(|&value| value != 0 && value != 255));
}

fn rand_augment(case: &Case) {
    let pictures = case.tensors("expected");
    for (index, pipeline) in list(&case.json("info")["pipelines"]).iter().enumerate() {
        let mut draws = list(&pipeline["draws"]).iter().map(number);
        let mut found = picture(&pictures["in"]);
        for name in list(&pipeline["ops"]) {
            let operation = operation(text(name));
            if draws.next().expect("a draw of whether it is done") > 0.5 {
                continue;
            }
            let sign = operation.has_sign().then(|| draws.next().expect("a sign"));
            operation.apply(&mut found, strength(operation, sign), Slips::EVE);
        }
        assert_eq!(draws.next(), None::<f64>, "every draw is used");
        let key = format!("augment{index}");
        assert_bytes(case, &found, &pictures[&key], &key);
    }
}
