//! The file of everything that a run needs to go on, beside the weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use merge::Checkpoint;
use merge::io::OpenOptions;
use merge::provenance::InputFile;
use serde::{Deserialize, Serialize};

use super::in_turn::write_in_turn;
use crate::data::Place;
use crate::optim::LossScale;
use crate::{Error, Result};

/// The key of the state in the metadata of its file.
const KEY: &str = "vlmerge.train_state";

/// The first parts of the names of kept numbers: averages of weights, and both moments.
const GROUPS: [&str; 3] = ["average/", "first/", "second/"];

/// The best result so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which it was measured.
    pub step: u64,
    /// The number that is compared.
    pub value: f64,
}

/// The state of a run.
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
    /// Facts about the data and its tokenizers: see [`identity`](crate::data::identity) and
    /// [`tokenizers`](crate::data::tokenizers). Other data cannot go on with this state. Empty in states of versions that
    /// did not keep it, and without tokenizers in those of later ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Variables that the checkpoint lacked from which the run began, where the family goes by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<String>>,
    /// Updates in which a variable had no gradient, and was skipped: its own steps are fewer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
    /// The files that the run began from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputFile>,
}

impl TrainState {
    /// Writes the state with numbers by name and length: `values` gives those of an entry, and is
    /// asked for every one of them in turn whatever happens, for other ranks may wait for that.
    ///
    /// # Errors
    /// When the disk is full or fails, and what `values` returns.
    pub(super) fn write<'v>(
        &self,
        path: &Path,
        entries: &[(String, usize)],
        values: impl Fn(usize) -> Result<Cow<'v, [f32]>>,
    ) -> Result<()> {
        // Strings and numbers always have a JSON form.
        let text = serde_json::to_string(self).unwrap_or_default();
        let metadata = BTreeMap::from([(KEY.to_owned(), text)]);
        let shapes = entries.iter().map(|(name, n)| (name.clone(), vec![*n]));
        write_in_turn(path, shapes, &metadata, values)
    }
}

/// A state on the disk.
pub struct KeptState {
    /// The state of the run.
    pub state: TrainState,
    file: Checkpoint,
}

impl KeptState {
    /// Opens a state.
    ///
    /// # Errors
    /// When the file is damaged or holds no state.
    pub fn open(path: &Path) -> Result<Self> {
        let file = merge::io::open(path, &OpenOptions::default())?;
        let fault = |reason: String| Error::BadState {
            path: path.into(),
            reason,
        };
        let text = file.info().metadata.get(KEY);
        let text = text.ok_or_else(|| fault("it is no state of a run".into()))?;
        let state = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        for (key, info) in file.tensors() {
            let is_known = GROUPS.iter().any(|group| key.starts_with(group));
            if !is_known || info.dtype != merge::DType::F32 {
                return Err(fault(format!("`{key}` is no part of a state")));
            }
        }
        Ok(Self { state, file })
    }

    /// Names of kept numbers, and how many each has.
    pub fn entries(&self) -> impl Iterator<Item = (&str, usize)> {
        (self.file.tensors()).map(|(key, info)| (key, info.n_elements()))
    }

    /// Numbers `range` of an entry.
    ///
    /// # Errors
    /// When the file cannot be read, or has no such entry.
    pub fn read(&self, key: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; range.len()];
        if !values.is_empty() {
            let bytes = bytemuck::cast_slice_mut(&mut values);
            self.file.read(key, range.start, bytes)?;
        }
        Ok(values)
    }

    /// The error for a state that does not fit.
    pub(super) fn refused(&self, reason: String) -> Error {
        Error::BadState {
            path: self.file.path().into(),
            reason,
        }
    }
}
