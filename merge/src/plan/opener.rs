//! Opening the models of a recipe: files, folders, and results of other documents.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::views;
use crate::beside::Companions;
use crate::io::{self, OpenOptions};
use crate::recipe::ModelRef;
use crate::{Checkpoint, Result, lora};

/// Opens models: files, folders, and results of other documents.
#[derive(Default)]
pub(super) struct Opener {
    made: BTreeMap<String, Arc<Checkpoint>>,
    /// What goes beside them.
    beside: BTreeMap<String, Companions>,
}

impl Opener {
    /// Opens a model.
    pub(super) fn open(&self, model: &ModelRef) -> Result<Arc<Checkpoint>> {
        let checkpoint = match self.made.get(&model.document()) {
            Some(made) => Arc::clone(made),
            None => open(model)?,
        };
        let checkpoint = match &model.adapter {
            Some(adapter) => {
                let renames = views::compiled(&model.adapter_rename, model.place)?;
                lora::adapted(checkpoint, adapter, &renames, model.place)?
            }
            None => checkpoint,
        };
        views::renamed(checkpoint, model)
    }

    /// The files beside a model.
    pub(super) fn companions(&self, model: &ModelRef) -> Result<Companions> {
        match self.beside.get(&model.document()) {
            Some(made) => Ok(made.clone()),
            None => Companions::of_model(&model.model),
        }
    }

    /// Whether a model is the result of another document.
    pub(super) fn is_document(&self, model: &ModelRef) -> bool {
        self.made.contains_key(&model.document())
    }

    /// Keeps the result of a document, and what goes beside it, for models that name it.
    pub(super) fn keep(&mut self, name: &str, made: Arc<Checkpoint>, beside: Companions) {
        self.made.insert(name.to_owned(), made);
        self.beside.insert(name.to_owned(), beside);
    }
}

/// Opens a file or a folder.
///
/// # Errors
/// When it cannot be read, and [`crate::Error::DuplicateKey`].
pub(super) fn open(model: &ModelRef) -> Result<Arc<Checkpoint>> {
    let options = OpenOptions {
        root: model.root.clone(),
    };
    let checkpoint = io::open(&model.model, &options)?;
    checkpoint.require_unique_names()?;
    Ok(Arc::new(checkpoint))
}
