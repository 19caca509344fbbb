//! Pictures after each step, and after whole lists of steps.

use evaluate::images::{Part, Rgb, decode};
use fixtures::{Case, Raw, first_difference, number};
use merge::random::Draws;
use train::augment::{Change, ErasedBox, POLICY, PictureStep, resized_part};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    lists_of_steps_give_the_published_tensors: "image_transform" => image_transform,
    parts_are_resized_as_published: "resized_crop" => resized_crop,
    every_change_of_autoaugment_is_that_of_pillow: "autoaug_op" => autoaug_op,
    every_row_of_autoaugment_is_that_of_the_policy: "autoaug_policy" => autoaug_policy,
    boxes_are_erased_as_published: "random_erasing" => random_erasing,
}

fn picture(case: &Case, field: &str) -> Rgb {
    let bytes = std::fs::read(case.file(field)).expect("a picture file");
    decode(&bytes).expect("a picture")
}

/// `(height, width, 3)` bytes.
fn bytes_of(case: &Case) -> Raw {
    case.tensors("expected")[case.text("key")].clone()
}

/// Looks at bytes: `exact_fraction` of them are equal, and none is off by more than `atol_u8`.
fn assert_bytes(case: &Case, found: &Rgb, expected: &[u8]) {
    assert_eq!(found.pixels.len(), expected.len());
    let pairs = found.pixels.iter().zip(expected);
    let largest = pairs.clone().map(|(a, b)| a.abs_diff(*b)).max();
    let allowed = case.tolerance("", "atol_u8");
    assert!(f64::from(largest.unwrap_or(0)) <= allowed, "{largest:?}");
    let n_equal = pairs.filter(|(a, b)| a == b).count();
    assert_fraction(case, n_equal, expected.len());
}

/// Looks whether as many numbers are equal as the case asks for.
fn assert_fraction(case: &Case, n_equal: usize, n: usize) {
    let least = case["tolerance"]["exact_fraction"].as_f64().unwrap_or(0.0);
    assert!(
        n_equal as f64 >= least * n as f64,
        "{n_equal} of {n} are equal"
    );
}

fn step(name: &str, case: &Case) -> PictureStep {
    let size = case.count(name).expect("a size");
    match name {
        "resize" => PictureStep::Resize { size },
        "resize_bicubic" => PictureStep::ResizeBicubic { size },
        "center_crop" => PictureStep::CenterCrop { size },
        _ => panic!("no step {name}"),
    }
}

fn image_transform(case: &Case) {
    let ops = fixtures::list(&case["params"]["ops"]).iter();
    let steps: Vec<PictureStep> = ops.map(|op| step(fixtures::text(op), case)).collect();
    let mut draws = Draws::new(0, "none").sequence();
    let found = (steps.iter()).fold(picture(case, "input"), |picture, step| {
        step.apply(picture, &mut draws)
    });
    if case["key"].is_null() {
        let expected = picture(case, "expected");
        assert_eq!(
            (found.width, found.height),
            (expected.width, expected.height)
        );
        return assert_bytes(case, &found, &expected.pixels);
    }
    assert_eq!(PictureStep::side(&steps), Some(found.width));
    let expected = &case.tensors("expected")[case.text("key")];
    assert_eq!(expected.shape, [3, found.height, found.width]);
    let of = |name: &str, channel: usize| number(&case["params"][name][channel]) as f32;
    let values: Vec<f64> = (0..3)
        .flat_map(|channel| {
            let own = found.pixels.iter().skip(channel).step_by(3);
            let (mean, deviation) = (of("mean", channel), of("std", channel));
            own.map(move |&v| f64::from((f32::from(v) / 255.0 - mean) / deviation))
        })
        .collect();
    let expected = expected.values();
    let atol = case.tolerance("", "atol");
    assert_eq!(first_difference(&values, &expected, 0.0, atol), None);
    let pairs = values.iter().zip(&expected);
    let n_equal = pairs.filter(|(a, b)| (**a - **b).abs() <= 1e-6).count();
    assert_fraction(case, n_equal, expected.len());
}

fn resized_crop(case: &Case) {
    let count = |name: &str| case.count(name).expect("a number");
    let part = Part {
        left: count("left"),
        top: count("top"),
        width: count("width"),
        height: count("height"),
    };
    let found = resized_part(&picture(case, "input"), part, count("size"));
    assert_bytes(case, &found, &bytes_of(case).bytes);
}

fn change(name: &str) -> Change {
    match name {
        "shearX" => Change::ShearX,
        "shearY" => Change::ShearY,
        "translateX" => Change::TranslateX,
        "translateY" => Change::TranslateY,
        "rotate" => Change::Rotate,
        "color" => Change::Color,
        "posterize" => Change::Posterize,
        "solarize" => Change::Solarize,
        "contrast" => Change::Contrast,
        "sharpness" => Change::Sharpness,
        "brightness" => Change::Brightness,
        "autocontrast" => Change::AutoContrast,
        "equalize" => Change::Equalize,
        "invert" => Change::Invert,
        _ => panic!("no change {name}"),
    }
}

fn autoaug_op(case: &Case) {
    let change = change(case.param("op").expect("an operation"));
    let index = case.count("index").expect("an index");
    let magnitude = case.number("magnitude").expect("a magnitude");
    assert!((change.magnitude(index) - magnitude).abs() < 1e-12);
    let sign = case["params"]["sign"].as_i64();
    assert_eq!(sign.is_some(), change.has_sign());
    let in_table = POLICY.iter().flatten();
    let in_table = in_table
        .clone()
        .any(|&(of, _, at)| of == change && at == index);
    assert_eq!(in_table, case["params"]["in_policy_table"]);
    let mut found = picture(case, "input");
    change.apply(&mut found, index, sign == Some(-1));
    assert_bytes(case, &found, &bytes_of(case).bytes);
}

fn autoaug_policy(case: &Case) {
    let row = POLICY[case.count("row").expect("a row") - 1];
    let draws = fixtures::list(&case["params"]["u"]).iter().map(number);
    let signs = fixtures::integers(&case["params"]["signs_in_order_of_use"]);
    let mut signs = signs.into_iter();
    let mut found = picture(case, "input");
    for ((change, probability, index), draw) in row.into_iter().zip(draws) {
        if draw < probability {
            let sign = match change.has_sign() {
                true => signs.next().expect("a sign"),
                false => 1,
            };
            change.apply(&mut found, index, sign < 0);
        }
    }
    assert_eq!(signs.next(), None);
    assert_bytes(case, &found, &bytes_of(case).bytes);
}

fn random_erasing(case: &Case) {
    let of = |name: &str| case.tensors("input")[case.param(name).expect("a name")].clone();
    let (before, after) = (of("source"), of("target"));
    let side = before.shape[1];
    let area = case.number("area_fraction").expect("a share") * (side * side) as f64;
    let aspect = case.number("log_aspect").expect("a number").exp();
    let (height, width) = ErasedBox::size(area, aspect);
    let erased = ErasedBox {
        top: case.count("top").expect("a row"),
        left: case.count("left").expect("a column"),
        height,
        width,
    };
    assert_eq!(case.param("mode"), Some("const"));
    let mut values: Vec<f32> = before.values().into_iter().map(|v| v as f32).collect();
    erased.fill(&mut values, side, |_, _| 0.0);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let differs = first_difference(&values, &after.values(), 0.0, 0.0);
    assert_eq!(differs, None);
}
