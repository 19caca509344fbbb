//! Where the fixtures are.

use std::path::PathBuf;

use serde_json::Value;

/// The path of a fixture.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures")).join(name)
}

/// A fixture that is JSON.
pub fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(name)).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

/// A number of a fixture.
pub fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The members of a list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// A list of whole numbers.
pub fn integers(value: &Value) -> Vec<i64> {
    let members = list(value).iter();
    members
        .map(|v| v.as_i64().expect("a whole number"))
        .collect()
}

/// A list of lists of numbers as a matrix, each number divided by `scale`.
pub fn matrix(value: &Value, scale: f64) -> ndarray::Array2<f32> {
    let rows: Vec<Vec<f32>> = list(value)
        .iter()
        .map(|row| {
            list(row)
                .iter()
                .map(|v| (number(v) / scale) as f32)
                .collect()
        })
        .collect();
    let shape = (rows.len(), rows[0].len());
    ndarray::Array2::from_shape_vec(shape, rows.concat()).expect("rows are equally long")
}
