//! Weights to a checkpoint file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::models::Blueprint;
use merge::beside::Beside;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::plan::{Action, Entry, Generator, TensorRef};
use merge::progress::Silent;
use merge::{MergePlan, TensorInfo};

use crate::Result;

/// Values that are in memory.
struct Values(Vec<f32>);

impl Generator for Values {
    fn fill(&self, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0[first..first + out.len()]);
    }
}

/// Writes `tensors` (by the model's names) as a checkpoint in the spelling of the one that
/// training started from; tensors of that one which no part of the model reads go along. The file
/// says what the tensors do not tell of the model.
///
/// # Errors
/// When the disk is full or fails; an older file stays as it was.
pub fn write_model(
    path: &Path,
    weights: &Weights,
    tensors: &BTreeMap<String, Tensor>,
    blueprint: &dyn Blueprint,
    recipe: &str,
) -> Result<()> {
    let source = Arc::clone(weights.checkpoint());
    let mut entries = Vec::with_capacity(tensors.len());
    let mut written = BTreeSet::new();
    for (name, tensor) in tensors {
        let key = match weights.key_of(name) {
            Some(key) => key.to_owned(),
            None => blueprint.spell(name),
        };
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        written.insert(key.clone());
        entries.push(Entry {
            name: key,
            info: TensorInfo {
                dtype: merge::DType::F32,
                shape: tensor.dims().to_vec(),
            },
            action: Action::Generate(Arc::new(Values(values.flatten_all()?.to_vec1()?))),
            why: "trained".into(),
        });
    }
    for (key, info) in source.tensors().filter(|(key, _)| !written.contains(*key)) {
        entries.push(Entry {
            name: key.to_owned(),
            info: info.clone(),
            action: Action::Copy(TensorRef {
                source: 0,
                key: key.to_owned(),
            }),
            why: "no part of the model".into(),
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let plan = MergePlan {
        recipe: recipe.to_owned(),
        sources: vec![source],
        stages: Vec::new(),
        grams: Vec::new(),
        gram_uses: Vec::new(),
        model: blueprint.record(),
        entries,
        dropped: Vec::new(),
        beside: Beside::default(),
    };
    let write = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    let run = RunOptions {
        hash: false,
        ..RunOptions::default()
    };
    execute(&plan, &write, &run, &Silent)?;
    Ok(())
}
