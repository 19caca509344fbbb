//! Checkpoints of names and shapes alone, beside opened fixtures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use merge::io::{Container, OpenOptions, PlainValue, SourceInfo, TensorEntry};
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
            .map(|(name, info)| TensorEntry::named(name, info))
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

/// A fixture, opened.
pub fn fixture(name: &str) -> Checkpoint {
    merge::io::open(&fixtures::path(name), &OpenOptions::default()).expect("a valid fixture")
}
