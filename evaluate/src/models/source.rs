//! The sources of a model's weights.

use std::path::Path;
use std::sync::Arc;

use merge::execute::{RunOptions, in_memory};
use merge::io::{OpenOptions, SourceFile};
use merge::provenance::{Hashes, Provenance};
use merge::{Checkpoint, MergePlan, MergeRecipe, Progress};

use crate::Result;

/// Weights that are a file, or that a plan makes in memory.
pub enum Source {
    /// A checkpoint; quantized weights of it are read as the numbers that they stand for.
    Checkpoint(Arc<Checkpoint>),
    /// A merge, or fresh weights.
    Plan(Box<MergePlan>),
}

impl Source {
    /// A checkpoint file or folder, whose headers are read.
    ///
    /// # Errors
    /// As [`merge::quantized::open`].
    pub fn file(path: &Path) -> Result<Self> {
        let checkpoint = merge::quantized::open(path, &OpenOptions::default())?;
        Ok(Self::Checkpoint(checkpoint))
    }

    /// A merge, which is planned.
    ///
    /// # Errors
    /// As [`MergePlan::resolve`].
    pub fn merge(recipe: &MergeRecipe) -> Result<Self> {
        Ok(Self::Plan(Box::new(MergePlan::resolve(recipe)?.0)))
    }

    /// The files that the weights come from.
    #[must_use]
    pub fn files(&self) -> Vec<SourceFile> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.info().files.clone(),
            Self::Plan(plan) => plan.files(),
        }
    }

    /// Whether gram files and other files beside the models of a merge are of these models, by the record of its
    /// [`files`](Self::files).
    ///
    /// # Errors
    /// As [`MergePlan::check_grams`].
    pub fn check(
        &self,
        record: &Provenance,
        hashes: &Hashes,
        progress: &dyn Progress,
    ) -> Result<()> {
        match self {
            Self::Checkpoint(_) => Ok(()),
            Self::Plan(plan) => Ok(plan.check_grams(record, hashes, progress)?),
        }
    }

    /// Notes for users on the way in which the files were found and read.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.notes().to_vec(),
            Self::Plan(plan) => plan.beside().notes.clone(),
        }
    }

    /// The recipe that makes them, or made them as far as the file says.
    #[must_use]
    pub fn recipe(&self) -> Option<String> {
        match self {
            Self::Checkpoint(checkpoint) => {
                let made = Provenance::from_metadata(&checkpoint.info().metadata);
                made.map(|made| made.recipe)
            }
            Self::Plan(plan) => Some(plan.recipe().to_owned()),
        }
    }

    /// The weights: a plan is carried out in memory, where nothing need be hashed.
    ///
    /// # Errors
    /// As [`in_memory`].
    pub fn checkpoint(self, progress: &dyn Progress) -> Result<Arc<Checkpoint>> {
        let run = RunOptions {
            hash: None,
            ..RunOptions::default()
        };
        Ok(match self {
            Self::Checkpoint(checkpoint) => checkpoint,
            Self::Plan(plan) => Arc::new(in_memory(&plan, &run, progress)?),
        })
    }
}
