//! Studies that merge copies of one model, each fine-tuned on a task of classification, and measure every merge on every task:
//! the table of papers on merging.

mod advice;
mod graph;
mod notes;
mod recipe;
mod results;

pub use graph::MultiTask;
pub use recipe::KEY as METHODS;
