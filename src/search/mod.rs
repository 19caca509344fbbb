//! Searching numbers of a merge recipe for the best result on validation data.

mod command;
mod failures;
mod outside;
mod seek;
mod space;
mod watched;
mod watcher;

pub use failures::{Candidate, FailureArgs, Failures, Outcome};
pub use outside::{ScoreArgs, Scorer};
pub use seek::{FAILED, cma_es, grid};
pub use space::Space;
pub use watcher::watch;
