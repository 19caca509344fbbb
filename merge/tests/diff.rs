//! Differences between two checkpoints.

use merge::diff::{DiffOptions, DiffReport, diff};
use merge::progress::Silent;
use merge::{Checkpoint, DType};

use crate::stored::Stored;

fn compare(left: &Checkpoint, right: &Checkpoint, tolerance: f64) -> DiffReport {
    let options = DiffOptions {
        tolerance,
        headers_only: false,
    };
    diff(left, right, &options, &Silent).expect("readable")
}

#[test]
fn a_checkpoint_equals_itself() {
    let a = Stored::new("a")
        .with("x", &[1.0, f32::NAN, f32::INFINITY])
        .open();
    let report = compare(&a, &a, 0.0);
    assert!(report.is_equal());
    assert_eq!((report.values.len(), report.n_compared), (0, 1));
}

#[test]
fn keys_shapes_and_dtypes_that_differ_are_listed() {
    let a = Stored::new("a")
        .with("gone", &[1.0])
        .with("x", &[1.0, 2.0])
        .open();
    let b = Stored::new("b")
        .with("new", &[1.0])
        .with("x", &[1.0, 2.0, 3.0])
        .open();
    let report = compare(&a, &b, 0.0);
    assert!(!report.is_equal());
    assert_eq!(report.only_left[0].key, "gone");
    assert_eq!(report.only_right[0].key, "new");
    assert_eq!(report.reshaped[0].right.shape, [3]);
    assert_eq!(report.n_compared, 0);
}

#[test]
fn the_largest_difference_is_found_with_its_place_and_the_mean() {
    let shape = [2, 3];
    let bytes = |values: [f32; 6]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let a = Stored::new("a")
        .with_bytes(
            "x",
            DType::F32,
            &shape,
            bytes([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        )
        .open();
    let b = Stored::new("b")
        .with_bytes(
            "x",
            DType::F32,
            &shape,
            bytes([0.0, 1.5, 2.0, 3.0, 1.0, 8.0]),
        )
        .open();
    let report = compare(&a, &b, 0.0);
    let x = &report.values[0];
    assert_eq!((x.max_abs, x.max_at.as_slice()), (3.0, &[1, 1][..]));
    assert_eq!((x.mean_abs, x.max_values), (6.5 / 6.0, [4.0, 1.0]));
    assert_eq!((x.n_different, x.n_beyond_tolerance), (3, 3));
    assert!(compare(&a, &b, 3.0).is_equal());
    assert_eq!(compare(&a, &b, 1.0).values[0].n_beyond_tolerance, 2);
}

#[test]
fn a_nan_or_infinity_on_one_side_differs_whatever_the_tolerance() {
    let a = Stored::new("a")
        .with("x", &[f32::NAN, 1.0, f32::INFINITY, 0.0])
        .open();
    let b = Stored::new("b")
        .with("x", &[1.0, 1.0, f32::NEG_INFINITY, -0.0])
        .open();
    let report = compare(&a, &b, 1e9);
    assert!(!report.is_equal());
    assert_eq!(
        (report.values[0].n_different, report.values[0].n_non_finite),
        (2, 2)
    );
    assert_eq!(
        (report.values[0].max_abs, report.values[0].mean_abs),
        (0.0, 0.0)
    );
}

#[test]
fn neighbouring_integers_of_64_bits_differ() {
    let of = |value: i64| {
        Stored::new("a")
            .with_bytes("x", DType::I64, &[], value.to_le_bytes().to_vec())
            .open()
    };
    let report = compare(&of(i64::MAX), &of(i64::MAX - 1), 0.0);
    assert_eq!(report.values[0].max_abs, 1.0);
    assert!(report.values[0].max_at.is_empty());
}

#[test]
fn equal_values_in_another_dtype_differ_in_dtype_only() {
    let a = Stored::new("a").with("x", &[1.5, -2.0]).open();
    let wide = [1.5f64, -2.0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let b = Stored::new("b")
        .with_bytes("x", DType::F64, &[2], wide)
        .open();
    let report = compare(&a, &b, 0.0);
    assert!(!report.is_equal());
    assert_eq!((report.reshaped.len(), report.values.len()), (1, 0));
}

#[test]
fn without_values_no_data_are_compared() {
    let a = Stored::new("a").with("x", &[1.0]).open();
    let b = Stored::new("b").with("x", &[2.0]).open();
    let options = DiffOptions {
        tolerance: 0.0,
        headers_only: true,
    };
    let report = diff(&a, &b, &options, &Silent).expect("readable");
    assert!(report.is_equal());
    assert_eq!(report.n_compared, 0);
}
