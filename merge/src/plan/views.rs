//! Checkpoints under other names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::settings::compile;
use crate::io::{SourceInfo, TensorEntry};
use crate::lora::Renames;
use crate::recipe::{ModelRef, Place, Rename};
use crate::{Checkpoint, DType, MergeFault, Result, TensorSource};

/// The checkpoint with its tensors renamed as the recipe says.
pub(super) fn renamed(checkpoint: Arc<Checkpoint>, model: &ModelRef) -> Result<Arc<Checkpoint>> {
    if model.rename.is_empty() {
        return Ok(checkpoint);
    }
    let renames = compiled(&model.rename, model.place)?;
    let mut tensors = Vec::new();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (key, info) in checkpoint.tensors() {
        let mut name = key.to_owned();
        for (pattern, to) in &renames {
            name = pattern.replace(&name, to.as_str()).into_owned();
        }
        if let Some(first) = taken.insert(name.clone(), key.to_owned()) {
            return Err(MergeFault::RenamedAlike {
                path: checkpoint.path().into(),
                first,
                second: key.to_owned(),
                name,
                place: model.place,
            }
            .into());
        }
        let entry = TensorEntry {
            path: crate::ObjectPath(vec![crate::PathSegment::Key(key.to_owned())]),
            name: Some(name),
            info: info.clone(),
        };
        tensors.push((key.to_owned(), entry));
    }
    let (keys, entries) = tensors.into_iter().unzip();
    Ok(Arc::new(Checkpoint::new(Box::new(Renamed {
        inner: checkpoint,
        keys,
        entries,
    }))))
}

/// Changes of names, ready to be done.
pub(super) fn compiled(renames: &[Rename], place: Place) -> Result<Renames> {
    (renames.iter())
        .map(|rename| {
            Ok((
                compile(&rename.from, &rename.from, place)?,
                rename.to.clone(),
            ))
        })
        .collect()
}

struct Renamed {
    inner: Arc<Checkpoint>,
    keys: Vec<String>,
    entries: Vec<TensorEntry>,
}

impl TensorSource for Renamed {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.inner.stored_dtype(&self.keys[index]);
        stored.unwrap_or(self.entries[index].info.dtype)
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read(&self.keys[index], first, out)
    }
}
