//! Checkpoints that exist in memory only, and the fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::io::{Container, PlainValue, SourceInfo, TensorEntry};
use merge::{Checkpoint, DType, ObjectPath, PathSegment, Result, TensorInfo, TensorSource};

/// A source with names and shapes but no data.
struct Headers {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
}

impl TensorSource for Headers {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn read(&self, _: usize, _: usize, _: &mut [u8]) -> Result<()> {
        panic!("a layout reads no data")
    }
}

/// A checkpoint of these names and shapes, with integers of a stored configuration.
pub fn checkpoint(
    tensors: impl IntoIterator<Item = (String, TensorInfo)>,
    config: &[(&str, i64)],
) -> Checkpoint {
    let path = |names: &[&str]| {
        ObjectPath(
            names
                .iter()
                .map(|name| PathSegment::Key((*name).to_owned()))
                .collect(),
        )
    };
    Checkpoint::new(Box::new(Headers {
        info: SourceInfo {
            path: PathBuf::from("memory"),
            container: Container::TorchZip,
            files: Vec::new(),
            metadata: BTreeMap::new(),
            roots: Vec::new(),
            root: String::new(),
            values: config
                .iter()
                .map(|(name, value)| {
                    let at = path(&["hyper_parameters", "config", name]);
                    (at, PlainValue::Integer(*value))
                })
                .collect(),
            opaque: Vec::new(),
        },
        tensors: tensors
            .into_iter()
            .map(|(name, info)| TensorEntry {
                path: path(&[&name]),
                name: Some(name),
                info,
            })
            .collect(),
    }))
}

/// A checkpoint of `f32` tensors of these names and shapes.
pub fn shapes(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensors = tensors.iter().map(|(name, shape)| {
        let info = TensorInfo {
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        ((*name).to_owned(), info)
    });
    checkpoint(tensors, &[])
}

/// Path of a fixture.
pub fn fixture_path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures")).join(name)
}

/// Names and shapes of a safetensors fixture.
pub fn fixture(name: &str) -> Checkpoint {
    let bytes = std::fs::read(fixture_path(name)).expect("the fixture is there");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a valid fixture");
    let tensors = header.tensors().into_iter().map(|(name, tensor)| {
        let dtype = serde_json::to_value(tensor.dtype).expect("a dtype is a string");
        let info = TensorInfo {
            dtype: serde_json::from_value(dtype).expect("the same names"),
            shape: tensor.shape.clone(),
        };
        (name, info)
    });
    checkpoint(tensors.collect::<Vec<_>>(), &[])
}
