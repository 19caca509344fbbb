//! Reading fixtures and written results independently of the crate under test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A file of `fixtures/`.
pub fn path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures")).join(name)
}

/// A JSON file of `fixtures/`.
pub fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(name)).expect("fixture is there");
    serde_json::from_str(&text).expect("fixture is JSON")
}

/// Dtype name, shape and bytes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    /// The elements as `f64`.
    pub fn values(&self) -> Vec<f64> {
        let dtype = merge::DType::from_name(&self.dtype.to_string()).expect("known dtype");
        let mut values = vec![0.0; self.bytes.len() / dtype.size_bytes()];
        merge::decode_f64("fixture", dtype, &self.bytes, &mut values).expect("a number");
        values
    }

    /// SHA-256 of the bytes, in hexadecimal.
    pub fn sha256(&self) -> String {
        (Sha256::digest(&self.bytes).iter())
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("file is there");
    Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// All tensors of a safetensors file, read by the reference implementation.
pub fn tensors(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).expect("file is there");
    let file = SafeTensors::deserialize(&bytes).expect("reference implementation reads it");
    (file.iter())
        .map(|(name, view)| {
            let raw = Raw {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (name.to_owned(), raw)
        })
        .collect()
}

/// Writes tensors to a safetensors file, with the reference implementation.
pub fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors.iter().map(|(name, raw)| {
        let view = TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).expect("valid");
        (name, view)
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

/// The first place where `|a − b| ≤ atol + rtol |b|` fails, with both values.
pub fn first_difference(a: &[f64], b: &[f64], rtol: f64, atol: f64) -> Option<(usize, f64, f64)> {
    assert_eq!(a.len(), b.len(), "same number of elements");
    (a.iter().zip(b).enumerate())
        .find(|(_, (a, b))| (*a - *b).abs() > atol + rtol * b.abs())
        .map(|(index, (&a, &b))| (index, a, b))
}
