//! Fixtures as this crate's tests want them.

pub use fixtures::{integers, json, list, number, path};
use serde_json::Value;

/// A list of lists of numbers as a matrix, each number divided by `scale`.
pub fn matrix(value: &Value, scale: f64) -> ndarray::Array2<f32> {
    let (values, [rows, columns]) = fixtures::matrix(value, scale);
    ndarray::Array2::from_shape_vec((rows, columns), values).expect("rows are equally long")
}
