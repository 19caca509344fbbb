//! Weights to a checkpoint file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::models::Blueprint;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::plan::{Action, Entry, Generator, PlanBuilder, TensorRef};
use merge::progress::Silent;
use merge::{Checkpoint, TensorInfo};

use super::origin;
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
/// says what the tensors do not tell of the model, and holds `notes` by their keys: what the classes of its
/// heads stand for. `others` has further weights by the model's names, which are written as they stand there.
///
/// # Errors
/// When the disk is full or fails; an older file stays as it was.
pub fn write_model(
    path: &Path,
    weights: &Weights,
    tensors: &BTreeMap<String, Tensor>,
    others: Option<&Arc<Checkpoint>>,
    blueprint: &dyn Blueprint,
    recipe: &str,
    notes: &[(&'static str, String)],
) -> Result<()> {
    let source = Arc::clone(weights.checkpoint());
    let mut plan = PlanBuilder::new(recipe.to_owned());
    let index = plan.source(Arc::clone(&source));
    let key_of = |name: &str| match weights.key_of(name) {
        Some(key) => key.to_owned(),
        None => blueprint.spell(name),
    };
    for (name, tensor) in tensors {
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        plan.add(Entry {
            name: key_of(name),
            info: TensorInfo {
                dtype: merge::DType::F32,
                shape: tensor.dims().to_vec(),
            },
            action: Action::Generate(Arc::new(Values(values.flatten_all()?.to_vec1()?))),
            why: "trained".into(),
        })?;
    }
    if let Some(others) = others {
        // They are of the same origin as all weights.
        let others = origin::with(Arc::clone(others), &[]);
        let side = plan.side_source(Arc::clone(&others));
        for (name, info) in others.tensors() {
            plan.add(Entry {
                name: key_of(name),
                info: info.clone(),
                action: Action::Copy(TensorRef {
                    source: side,
                    key: name.to_owned(),
                }),
                why: "trained".into(),
            })?;
        }
    }
    for (key, _) in source.tensors() {
        if plan.has(key) {
            let key = key.to_owned();
            plan.drop_tensor(TensorRef { source: index, key }, "trained");
        } else {
            plan.copy(index, key, "no part of the model")?;
        }
    }
    let mut plan = plan.model(blueprint.record());
    for (key, note) in notes {
        plan = plan.note(key, note.clone());
    }
    let plan = plan.finish()?;
    let write = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    let run = RunOptions {
        hash: None,
        ..RunOptions::default()
    };
    execute(&plan, &write, &run, &Silent)?;
    Ok(())
}
