//! A whole study from one recipe: pre-training, merges, fine-tuning, measuring, one report.
//!
//! 1. [`StudyRecipe`] says what is studied.
//! 2. [`Graph`] makes [`step::Step`]s of it: commands of this program, and what each needs.
//! 3. [`Store`] knows which of them are finished and still hold.
//! 4. [`Runner`] runs the others.
//! 5. [`results::join`] makes one report of what they measured.

mod graph;
mod merging;
mod recipe;
pub mod results;
mod run;
mod step;
mod store;

pub use graph::Graph;
pub use recipe::StudyRecipe;
pub use run::{Runner, end_with_parent};
pub use store::{Standing, Store, dependencies};
