//! A plan under construction: starts as a copy of a checkpoint and is changed entry by entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::beside::Beside;
use crate::io::{Aliases, Container};
use crate::layouts::ModelRecord;
use crate::methods::WholeKernel;
use crate::plan::{Action, Dropped, Entry, PlanBuilder, TensorRef};
use crate::recipe::OutputDType;
use crate::{
    Checkpoint, ConversionFault, Error, Layout, MergePlan, Result, Role, TensorInfo, ties,
};

/// Entries by name, and the tensors left out so far.
pub(super) struct Draft {
    sources: Vec<Arc<Checkpoint>>,
    entries: BTreeMap<String, Entry>,
    /// Other names, each with that of the entry.
    aliases: Aliases,
    dropped: Vec<Dropped>,
    /// The files beside the output in a folder.
    beside: Beside,
}

impl Draft {
    /// All tensors of a checkpoint under their own names.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`] when a name belongs to more than one tensor.
    pub(super) fn copy_of(source: Arc<Checkpoint>) -> Result<Self> {
        source.require_unique_names()?;
        let entries = source
            .tensors()
            .map(|(name, info)| {
                // Computed tensors are wider than what they are made of.
                let info = TensorInfo {
                    dtype: source.stored_dtype(name).unwrap_or(info.dtype),
                    shape: info.shape.clone(),
                };
                (name.to_owned(), copy(0, name, &info))
            })
            .collect();
        Ok(Self {
            aliases: source.aliases().clone(),
            sources: vec![source],
            entries,
            dropped: Vec::new(),
            beside: Beside::default(),
        })
    }

    /// Says what goes beside the output in a folder.
    pub(super) fn set_beside(&mut self, beside: Beside) {
        self.beside = beside;
    }

    /// All names of a checkpoint, tied or not, as tensors of their own.
    ///
    /// # Errors
    /// As [`Draft::copy_of`].
    pub(super) fn untied(source: Arc<Checkpoint>) -> Result<Self> {
        match source.aliases().clone() {
            aliases if aliases.is_empty() => Self::copy_of(source),
            aliases => Self::copy_of(ties::with_apart(&source, aliases)?),
        }
    }

    /// Opens another input; returns its index.
    pub(super) fn add_source(&mut self, source: Arc<Checkpoint>) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    /// One of the inputs.
    pub(super) fn source(&self, index: usize) -> &Checkpoint {
        &self.sources[index]
    }

    /// The error for a conversion that this family does not have.
    pub(super) fn refused(&self, layout: &dyn Layout, wanted: &'static str) -> Error {
        ConversionFault::NoSuchConversion {
            path: self.sources[0].path().into(),
            layout: layout.name(),
            wanted,
        }
        .into()
    }

    /// Whether any entry is no plain copy.
    pub(super) fn is_changed(&self) -> bool {
        let is_copy = |entry: &Entry| matches!(entry.action, Action::Copy(_));
        !self.entries.values().all(is_copy)
    }

    /// Current names in order.
    pub(super) fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Shape of an entry.
    ///
    /// # Errors
    /// [`Error::MissingKey`] with the nearest name of the main source.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.entries.get(name) {
            Some(entry) => Ok(entry.info.shape.clone()),
            None => Ok(self.sources[0].require(name)?.shape.clone()),
        }
    }

    /// Other names of entries.
    pub(super) fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// Gives an entry's other name another form.
    ///
    /// # Errors
    /// [`ConversionFault::NameTaken`].
    pub(super) fn rename_alias(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(of) = self.aliases.remove(from) else {
            return Ok(());
        };
        let is_taken = self.entries.contains_key(to);
        if self.aliases.insert(to.to_owned(), of).is_some() || is_taken {
            return Err(self.taken(to));
        }
        Ok(())
    }

    fn taken(&self, name: &str) -> Error {
        ConversionFault::NameTaken {
            path: self.sources[0].path().into(),
            key: name.to_owned(),
        }
        .into()
    }

    /// Takes an entry out, to be put back changed or not at all.
    pub(super) fn take(&mut self, name: &str) -> Option<Entry> {
        self.entries.remove(name)
    }

    /// Puts an entry in under its name.
    ///
    /// # Errors
    /// [`ConversionFault::NameTaken`] when there is one of this name.
    pub(super) fn put(&mut self, entry: Entry) -> Result<()> {
        let name = entry.name.clone();
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(self.taken(&name)),
        }
    }

    /// Gives an entry another name.
    ///
    /// # Errors
    /// [`ConversionFault::NameTaken`].
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let Some(mut entry) = self.take(from) else {
            return Ok(());
        };
        for of in self.aliases.values_mut().filter(|of| *of == from) {
            to.clone_into(of);
        }
        entry.name = to.to_owned();
        entry.why = format!("{}; was `{from}`", entry.why);
        self.put(entry)
    }

    /// Leaves an entry out, saying why.
    pub(super) fn drop_entry(&mut self, name: &str, why: &str) {
        if let Some(entry) = self.take(name) {
            for tensor in entry.action.tensors().cloned() {
                self.dropped.push(Dropped {
                    tensor,
                    why: why.to_owned(),
                });
            }
        }
    }

    /// Recomputes an entry as a whole: the entries `names` go into `kernel`, and the result is
    /// called `to`.
    ///
    /// # Errors
    /// [`ConversionFault::NameTaken`].
    pub(super) fn compute(
        &mut self,
        names: &[String],
        to: &str,
        shape: Vec<usize>,
        kernel: Arc<dyn WholeKernel>,
        why: String,
    ) -> Result<()> {
        let mut members = Vec::new();
        let mut dtype = None;
        for name in names {
            if let Some(entry) = self.take(name) {
                dtype.get_or_insert(entry.info.dtype);
                members.extend(entry.action.tensors().cloned());
            }
        }
        let Some(dtype) = dtype else {
            return Ok(());
        };
        let n_members = members.len();
        self.put(Entry {
            name: to.to_owned(),
            info: TensorInfo { dtype, shape },
            action: Action::Whole {
                members,
                base: None,
                grams: vec![None; n_members],
                kernel,
            },
            why,
        })
    }

    /// The finished plan of what `recipe` says, its floats in `dtype`, with what the conversion
    /// knows of the model. Buffers that loaders rebuild keep theirs: some hold row numbers as `f32`,
    /// which no half can.
    ///
    /// # Errors
    /// As [`PlanBuilder::finish`].
    pub(super) fn finish(
        mut self,
        layout: &dyn Layout,
        recipe: String,
        dtype: OutputDType,
        model: ModelRecord,
    ) -> Result<MergePlan> {
        for entry in self.entries.values_mut() {
            let is_buffer = match &entry.action {
                Action::Copy(tensor) => matches!(layout.role(&tensor.key), Ok(Role::Derived)),
                _ => false,
            };
            if !is_buffer {
                entry.info.dtype = dtype.apply(entry.info.dtype);
            }
        }
        let is_same = dtype == OutputDType::Keep && !self.is_changed();
        let mut plan = PlanBuilder::new(recipe);
        if let [source] = self.sources.as_slice() {
            for (key, text) in foreign_metadata(source, is_same) {
                plan = plan.note(&key, text);
            }
        }
        for (index, source) in self.sources.into_iter().enumerate() {
            match index {
                0 => plan.source(source),
                _ => plan.side_source(source),
            };
        }
        for dropped in self.dropped {
            plan.drop_tensor(dropped.tensor, dropped.why);
        }
        for (name, of) in &self.aliases {
            // The other names of an entry that is left out are left out, too.
            if self.entries.contains_key(of) {
                plan.alias(name, of)?;
            }
        }
        for entry in self.entries.into_values() {
            plan.add(entry)?;
        }
        plan.model(model).beside(self.beside).finish()
    }

    /// Notes why a tensor of the main source has no place in the output.
    pub(super) fn drop_tensor(&mut self, tensor: TensorRef, why: &str) {
        self.dropped.push(Dropped {
            tensor,
            why: why.to_owned(),
        });
    }
}

/// Entries of other programs in the metadata of a safetensors file. Hashes stay only where tensors do.
fn foreign_metadata(source: &Checkpoint, is_same: bool) -> Vec<(String, String)> {
    let info = source.info();
    let is_foreign = |key: &str| {
        let is_hash = key.to_ascii_lowercase().contains("hash");
        key != "format" && !key.starts_with("vlmerge.") && (is_same || !is_hash)
    };
    let all = info.metadata.iter();
    match info.container {
        Container::Safetensors => all
            .filter(|(key, _)| is_foreign(key))
            .map(|(key, text)| (key.clone(), text.clone()))
            .collect(),
        _ => Vec::new(),
    }
}

/// An entry that copies a tensor under its own name.
pub(super) fn copy(source: usize, name: &str, info: &TensorInfo) -> Entry {
    Entry {
        name: name.to_owned(),
        info: info.clone(),
        action: Action::Copy(TensorRef {
            source,
            key: name.to_owned(),
        }),
        why: "copied".to_owned(),
    }
}
