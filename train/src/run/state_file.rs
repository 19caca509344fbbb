//! Everything that a run needs to go on, beside the weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
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

/// A value for each element of a variable, where the variable is.
#[derive(Clone, Debug)]
pub enum Moment {
    /// In memory, row-major.
    Host(Vec<f32>),
    /// On another device.
    Device(Tensor),
}

impl Moment {
    /// The values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Self::Host(values) => Cow::Borrowed(values),
            Self::Device(tensor) => {
                let flat = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                Cow::Owned(flat.flatten_all()?.to_vec1()?)
            }
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(tensor) => tensor.elem_count(),
        }
    }

    /// Where the variable is.
    fn beside(self, variable: &Var) -> Result<Self> {
        match self {
            Self::Host(values) if !variable.device().is_cpu() => {
                let tensor = Tensor::from_vec(values, variable.dims(), &Device::Cpu)?;
                Ok(Self::Device(tensor.to_device(variable.device())?))
            }
            other => Ok(other),
        }
    }
}

/// Moments of the optimizer and averages of the weights, by name of variable.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Mean of the gradient.
    pub first: BTreeMap<String, Moment>,
    /// Mean of its square.
    pub second: BTreeMap<String, Moment>,
    /// Averages of the weights, where they are kept.
    pub averages: BTreeMap<String, Moment>,
}

impl Moments {
    fn groups(&self) -> [(&'static str, &BTreeMap<String, Moment>); 3] {
        [
            ("average", &self.averages),
            ("first", &self.first),
            ("second", &self.second),
        ]
    }

    /// Both moments of a variable, which begin at zero.
    ///
    /// # Errors
    /// [`Error::OtherMoments`] when kept ones are of another length; when the device fails.
    pub fn of(&mut self, name: &str, variable: &Var) -> Result<(&mut Moment, &mut Moment)> {
        for moments in [&mut self.first, &mut self.second] {
            let kept = moments.remove(name);
            let moment = kept.unwrap_or_else(|| Moment::Host(vec![0.0; variable.elem_count()]));
            if moment.len() != variable.elem_count() {
                return Err(Error::OtherMoments { name: name.into() });
            }
            moments.insert(name.to_owned(), moment.beside(variable)?);
        }
        let lost = || Error::OtherMoments { name: name.into() };
        let first = self.first.get_mut(name).ok_or_else(lost)?;
        let second = self.second.get_mut(name).ok_or_else(lost)?;
        Ok((first, second))
    }
}

impl TrainState {
    /// Writes the state.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self, path: &Path, moments: &Moments) -> Result<()> {
        let mut kept = Vec::new();
        let mut infos = Vec::new();
        for (group, of_group) in moments.groups() {
            for (name, moment) in of_group {
                let info = TensorInfo {
                    dtype: merge::DType::F32,
                    shape: vec![moment.len()],
                };
                infos.push((format!("{group}/{name}"), info));
                kept.push(moment);
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
        for (index, moment) in kept.into_iter().enumerate() {
            writer.write(index, 0, bytemuck::cast_slice(&moment.values()?))?;
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
            let values = read_values(&file, key, info)?;
            group.0.insert(group.1.to_owned(), Moment::Host(values));
        }
        Ok((state, moments))
    }
}

fn read_values(file: &Checkpoint, key: &str, info: &TensorInfo) -> Result<Vec<f32>> {
    let bytes = file.read_all(key)?;
    let mut values = vec![0.0; info.n_elements()];
    merge::decode_f32(key, info.dtype, &bytes, &mut values)?;
    Ok(values)
}
