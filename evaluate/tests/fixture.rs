//! Fixtures as this crate's tests want them.

use evaluate::Sample;
pub use fixtures::{integers, json, list, number, path};
use serde_json::Value;

/// A number of a sample, by its name.
pub fn value(sample: &Sample, name: &str) -> f64 {
    let quantity = sample.quantities.iter().find(|q| q.name == name);
    let quantity = quantity.unwrap_or_else(|| panic!("{name} is not reported"));
    sample.value(quantity).expect("there are cases")
}

/// A list of lists of numbers as a matrix, each number divided by `scale`.
pub fn matrix(value: &Value, scale: f64) -> ndarray::Array2<f32> {
    let (values, [rows, columns]) = fixtures::matrix(value, scale);
    ndarray::Array2::from_shape_vec((rows, columns), values).expect("rows are equally long")
}
