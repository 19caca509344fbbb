//! Searching numbers of a merge recipe for the best result on validation data.

mod command;
mod outside;
mod seek;
mod space;

pub use outside::{ScoreArgs, Scorer};
pub use seek::{cma_es, grid};
pub use space::Space;
