//! A whole study from one recipe: training, merges, measuring, one report.
//!
//! 1. [`open`] reads a recipe and plans its kind of [`Study`]: [`Graph`] merges experts, [`Comparison`] compares
//!    ways to pre-train, [`MultiTask`] merges copies that were fine-tuned on tasks. Each makes [`step::Step`]s: commands of this program, and what each needs.
//! 2. [`Store`] knows which of them are finished and still hold.
//! 3. [`Runner`] runs the others.
//! 4. [`Study::join`] makes one report of what they measured.

mod claims;
mod comparing;
mod cost;
mod graph;
mod merging;
mod multi_task;
mod pace;
mod recipe;
pub mod results;
mod run;
mod step;
mod step_plan;
mod store;
mod verdict;

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use train::recipe::open_document;

use comparing::{COMPARE, Comparison};
pub use cost::note as note_cost;
use graph::Graph;
use multi_task::{METHODS, MultiTask};
use results::Findings;
pub use run::{Runner, end_with_parent};
use step::Step;
pub use store::{Standing, Store, dependencies};

/// A planned study, whatever it studies.
pub trait Study {
    /// Every step stands behind those that it needs.
    fn steps(&self) -> &[Step];

    /// Refuses ways to run it that would make its findings wrong.
    fn check(&self, _runner: &Runner) -> Result<()> {
        Ok(())
    }

    /// Makes one report of what the steps left.
    fn join(&self, store: &Store) -> Result<Findings>;
}

/// Reads a recipe, with settings changed, and plans its study.
pub fn open(path: &Path, settings: &[String]) -> Result<Box<dyn Study>> {
    let document: Value = open_document(path, settings)?;
    let has = |key: &str| document.get(key).is_some();
    Ok(if has(COMPARE) {
        Box::new(Comparison::open(path, settings)?)
    } else if has(METHODS) {
        Box::new(MultiTask::open(path, settings)?)
    } else {
        Box::new(Graph::open(path, settings)?)
    })
}
