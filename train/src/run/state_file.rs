//! Everything that a run needs to go on, beside the weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use merge::io::{OpenOptions, WriteOptions, Writer};
use merge::{Checkpoint, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::data::Place;
use crate::optim::LossScale;
use crate::{Error, Result};

/// The key of the state in the metadata of its file.
const KEY: &str = "vlmerge.train_state";

/// The best result so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which it was measured.
    pub step: u64,
    /// The number that is compared.
    pub value: f64,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Steps that are done.
    pub step: u64,
    /// Updates among them: a step whose gradients overflowed makes none.
    pub updates: u64,
    /// The next batch.
    pub place: Place,
    /// Examples that were learned from.
    pub examples: u64,
    /// The factor of the loss in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// The best result so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Stands for the recipe; another recipe cannot go on with this state.
    pub recipe: String,
}

/// Moments of the optimizer and averages of the weights, by name of variable.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Mean of the gradient.
    pub first: BTreeMap<String, Tensor>,
    /// Mean of its square.
    pub second: BTreeMap<String, Tensor>,
    /// Averages of the weights, where they are kept.
    pub averages: BTreeMap<String, Tensor>,
}

impl Moments {
    fn groups(&self) -> [(&'static str, &BTreeMap<String, Tensor>); 3] {
        [
            ("average", &self.averages),
            ("first", &self.first),
            ("second", &self.second),
        ]
    }
}

impl TrainState {
    /// Writes the state.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self, path: &Path, moments: &Moments) -> Result<()> {
        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        for (group, of_group) in moments.groups() {
            for (name, tensor) in of_group {
                let info = TensorInfo {
                    dtype: merge::DType::F32,
                    shape: tensor.dims().to_vec(),
                };
                infos.push((format!("{group}/{name}"), info));
                tensors.push(tensor);
            }
        }
        // Strings and numbers always have a JSON form.
        let text = serde_json::to_string(self).unwrap_or_default();
        let metadata = BTreeMap::from([(KEY.to_owned(), text)]);
        let options = WriteOptions {
            force: true,
            ..WriteOptions::new(path)
        };
        let writer = Writer::create(&infos, &metadata, &options)?;
        for (index, tensor) in tensors.into_iter().enumerate() {
            let values: Vec<f32> = tensor
                .to_device(&Device::Cpu)?
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1()?;
            writer.write(index, 0, bytemuck::cast_slice(&values))?;
        }
        writer.finish(&metadata)?;
        Ok(())
    }

    /// Reads a state.
    ///
    /// # Errors
    /// When the file is damaged or holds no state.
    pub fn read(path: &Path) -> Result<(Self, Moments)> {
        let file = merge::io::open(path, &OpenOptions::default())?;
        let fault = |reason: String| Error::BadState {
            path: path.into(),
            reason,
        };
        let text = file.info().metadata.get(KEY);
        let text = text.ok_or_else(|| fault("it is no state of a run".into()))?;
        let state = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        let mut moments = Moments::default();
        for (key, info) in file.tensors() {
            let group = match key.split_once('/') {
                Some(("average", name)) => (&mut moments.averages, name),
                Some(("first", name)) => (&mut moments.first, name),
                Some(("second", name)) => (&mut moments.second, name),
                _ => return Err(fault(format!("`{key}` is no part of a state"))),
            };
            group.0.insert(group.1.to_owned(), read_tensor(&file, key, info)?);
        }
        Ok((state, moments))
    }
}

fn read_tensor(file: &Checkpoint, key: &str, info: &TensorInfo) -> Result<Tensor> {
    let bytes = file.read_all(key)?;
    let mut values = vec![0.0; info.n_elements()];
    merge::decode_f32(key, info.dtype, &bytes, &mut values)?;
    Ok(Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?)
}
