//! The metadata of a model, by the names of its architecture's entries.

use crate::gguf::architectures::Architecture;
use crate::gguf::{count, value};
use crate::io::{PlainValue, SourceInfo};
use crate::{Checkpoint, DType, GgufFault, Result, decode_f32};

/// The reader of the metadata, for messages.
const WANTED: &str = "config.json";

/// The metadata, and the tensors under their own names.
pub(super) struct Facts<'a> {
    raw: &'a Checkpoint,
    pub(super) architecture: &'static Architecture,
}

impl<'a> Facts<'a> {
    pub(super) const fn new(raw: &'a Checkpoint, architecture: &'static Architecture) -> Self {
        Self { raw, architecture }
    }

    pub(super) fn info(&self) -> &'a SourceInfo {
        self.raw.info()
    }

    /// The whole name of an entry of the architecture.
    pub(super) fn key(&self, entry: &str) -> String {
        format!("{}.{entry}", self.architecture.name)
    }

    /// Whether there is such an entry.
    pub(super) fn has(&self, entry: &str) -> bool {
        value(self.info(), &self.key(entry)).is_some()
    }

    /// A positive whole number.
    pub(super) fn count(&self, entry: &str) -> Result<usize> {
        count(self.info(), &self.key(entry), WANTED)
    }

    /// A positive whole number, or the one that counts without it.
    pub(super) fn count_or(&self, entry: &str, default: usize) -> Result<usize> {
        match self.has(entry) {
            true => self.count(entry),
            false => Ok(default),
        }
    }

    /// A number that is finite; `None` if there is none.
    pub(super) fn number(&self, entry: &str) -> Result<Option<f64>> {
        let key = self.key(entry);
        match value(self.info(), &key) {
            None => Ok(None),
            Some(PlainValue::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(PlainValue::Integer(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.wrong(&key, "is no finite number")),
        }
    }

    /// A number that must be there.
    pub(super) fn required(&self, entry: &str) -> Result<f64> {
        let found = self.number(entry)?;
        found.ok_or_else(|| self.wrong(&self.key(entry), "is missing"))
    }

    /// Text; `None` if there is none.
    pub(super) fn text(&self, entry: &str) -> Result<Option<&'a str>> {
        let key = self.key(entry);
        match value(self.info(), &key) {
            None => Ok(None),
            Some(PlainValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(&key, "is no text")),
        }
    }

    /// Yes or no; `None` if it is neither.
    pub(super) fn bool(&self, entry: &str) -> Result<Option<bool>> {
        let key = self.key(entry);
        match value(self.info(), &key) {
            None => Ok(None),
            Some(PlainValue::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(&key, "is neither true nor false")),
        }
    }

    /// The numbers of a small tensor under the file's own name; `None` if there is none.
    pub(super) fn tensor(&self, name: &str, n_elements: usize) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.raw.get(name) else {
            return Ok(None);
        };
        if info.dtype != DType::F32 || info.shape != [n_elements] {
            return Err(GgufFault::Shape {
                path: self.info().path.clone(),
                key: name.to_owned(),
                shape: info.shape.clone(),
                wanted: format!("{n_elements} pairs of a head in f32"),
            }
            .into());
        }
        let mut values = vec![0.0; n_elements];
        decode_f32(name, info.dtype, &self.raw.read_all(name)?, &mut values)?;
        Ok(Some(values))
    }

    /// The fault of an entry that config.json needs.
    pub(super) fn wrong(&self, key: &str, found: &str) -> crate::Error {
        GgufFault::Fact {
            path: self.info().path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            wanted: WANTED.to_owned(),
        }
        .into()
    }

    /// The fault of an entry of the architecture that config.json has no words for.
    pub(super) fn unsaid(&self, entry: &str, found: String) -> crate::Error {
        self.unsaid_of(&self.key(entry), found)
    }

    /// The same of a tensor, or of an entry by its whole name.
    pub(super) fn unsaid_of(&self, key: &str, found: String) -> crate::Error {
        GgufFault::Unsaid {
            path: self.info().path.clone(),
            key: key.to_owned(),
            found,
        }
        .into()
    }
}
