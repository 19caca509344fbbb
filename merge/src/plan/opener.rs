//! Opening the models of a recipe: files, folders, and results of other documents.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::views;
use crate::beside::{Companions, Content};
use crate::io::{self, OpenOptions, SourceFile};
use crate::layouts::{self, Packing};
use crate::recipe::{ModelRef, Part, adapters};
use crate::remote::address::is_address;
use crate::{Checkpoint, MergeRecipe, Result, lora, quantized, ties};

/// Opens models: files, folders, and results of other documents.
#[derive(Default)]
pub(super) struct Opener {
    made: BTreeMap<String, Arc<Checkpoint>>,
    /// Models that were opened, each once for each value of `keeps_rank`.
    opened: RefCell<Vec<(ModelRef, bool, Arc<Checkpoint>)>>,
    /// Whether adapters are merged into models in f64.
    keeps_rank: Cell<bool>,
    /// The files beside them.
    beside: BTreeMap<String, Companions>,
    /// Notes for users on the way in which models were found.
    notes: RefCell<Vec<String>>,
    /// The files beside models of this machine, as they were when they were found first.
    seen: RefCell<BTreeMap<PathBuf, SourceFile>>,
    /// The spellings of models that merges read in another way.
    spelled: RefCell<BTreeMap<String, Packing>>,
}

impl Opener {
    /// Opens a model, or returns it if it is open.
    pub(super) fn open(&self, model: &ModelRef) -> Result<Arc<Checkpoint>> {
        let keeps_rank = self.keeps_rank.get();
        let known = (self.opened.borrow().iter())
            .find(|(known, kept, _)| known.is_same_model(model) && *kept == keeps_rank)
            .map(|(_, _, checkpoint)| Arc::clone(checkpoint));
        if let Some(checkpoint) = known {
            return Ok(checkpoint);
        }
        let checkpoint = self.open_first(model)?;
        let kept = (model.clone(), keeps_rank, Arc::clone(&checkpoint));
        self.opened.borrow_mut().push(kept);
        Ok(checkpoint)
    }

    /// Says whether the models that follow must keep the rank of their adapters, see [`lora::stacked`].
    pub(super) fn keep_ranks(&self, keeps_rank: bool) {
        self.keeps_rank.set(keeps_rank);
    }

    fn open_first(&self, model: &ModelRef) -> Result<Arc<Checkpoint>> {
        let checkpoint = match self.made.get(&model.document()) {
            Some(made) => Arc::clone(made),
            None => {
                if !is_address(&model.model) {
                    // Before its configuration says how its weights are stored.
                    self.found_beside(&model.model)?;
                }
                let (apart, spelling) = layouts::apart(quantized::dequantized(open(model)?)?)?;
                if let Some(spelling) = spelling {
                    let mut spelled = self.spelled.borrow_mut();
                    spelled.insert(model.document(), spelling);
                }
                apart
            }
        };
        self.note(checkpoint.notes());
        let checkpoint = match &model.adapter {
            Some(text) => {
                let renames = views::compiled(&model.adapter_rename, model.place)?;
                let keeps_rank = self.keeps_rank.get();
                let stacked = lora::stacked(
                    checkpoint,
                    &adapters(text),
                    &renames,
                    model.place,
                    keeps_rank,
                )?;
                self.note(stacked.notes());
                stacked
            }
            None => checkpoint,
        };
        views::renamed(checkpoint, model)
    }

    /// Keeps notes, each once.
    pub(super) fn note(&self, notes: &[String]) {
        let mut known = self.notes.borrow_mut();
        for note in notes {
            if !known.contains(note) {
                known.push(note.clone());
            }
        }
    }

    /// Notes for users on the models that were opened.
    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// The files beside a model. An adapter that was trained with more tokens brings its tokenizer.
    pub(super) fn companions(&self, model: &ModelRef) -> Result<Companions> {
        let mut companions = match self.beside.get(&model.document()) {
            Some(made) => made.clone(),
            None => self.found_beside(&model.model)?,
        };
        if self.added_tokens(model)?.is_some() {
            for (adapter, _) in model.adapter.iter().flat_map(|text| adapters(text)) {
                let own = self.found_beside(&adapter)?;
                if own.has_tokenizer() {
                    companions = companions.with_tokenizer_of(&own);
                }
            }
        }
        Ok(companions)
    }

    /// The files beside a model, which must stay as they are until the merge is done.
    fn found_beside(&self, model: &Path) -> Result<Companions> {
        let companions = Companions::of_model(model)?;
        let mut seen = self.seen.borrow_mut();
        for content in companions.0.values() {
            if let Content::Copy(path) = content
                && !seen.contains_key(path)
                && let Some(file) = SourceFile::seen(path)
            {
                seen.insert(path.clone(), file);
            }
        }
        Ok(companions)
    }

    /// The files that were found beside models, as they were then.
    pub(super) fn seen(&self) -> Vec<SourceFile> {
        self.seen.borrow().values().cloned().collect()
    }

    /// A model without its adapters.
    fn plain(&self, model: &ModelRef) -> Result<Arc<Checkpoint>> {
        self.open(&ModelRef {
            adapter: None,
            ..model.clone()
        })
    }

    /// Rows of the embeddings before and after adapters, where those bring more.
    pub(super) fn added_tokens(&self, model: &ModelRef) -> Result<Option<(usize, usize)>> {
        if model.adapter.is_none() {
            return Ok(None);
        }
        let (before, after) = (self.plain(model)?, self.open(model)?);
        let rows = before
            .tensors()
            .filter(|(name, _)| ties::is_embedding(name));
        let mut rows = rows.filter_map(|(name, info)| {
            Some((*info.shape.first()?, *after.get(name)?.shape.first()?))
        });
        Ok(rows.find(|(before, after)| before != after))
    }

    /// Tensors of an adapter that are for other parts of a pipeline than the model.
    pub(super) fn other_parts(&self, model: &ModelRef, adapter: &Path) -> Result<Vec<String>> {
        let renames = views::compiled(&model.adapter_rename, model.place)?;
        let plain = self.plain(model)?;
        lora::other_parts(&plain, adapter, &renames, model.place)
    }

    /// The spelling of a model, if merges read it in another way.
    pub(super) fn spelling(&self, model: &ModelRef) -> Option<Packing> {
        self.spelled.borrow().get(&model.document()).copied()
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

/// The models that a recipe merges, those of slices after the others; bases are not among them.
pub(super) fn merged(recipe: &MergeRecipe) -> impl Iterator<Item = ModelRef> {
    recipe.parts().into_iter().flat_map(Part::merged)
}

/// Opens a file or a folder.
///
/// # Errors
/// When it cannot be read, [`crate::Error::DuplicateKey`], and as [`quantized::check_readable`].
pub(crate) fn open(model: &ModelRef) -> Result<Arc<Checkpoint>> {
    let options = OpenOptions {
        root: model.root.clone(),
        ..OpenOptions::default()
    };
    let checkpoint = io::open(&model.model, &options)?;
    checkpoint.require_unique_names()?;
    quantized::check_readable(&checkpoint)?;
    Ok(Arc::new(checkpoint))
}
