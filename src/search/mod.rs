//! Searching numbers of a merge recipe for the best result on validation data.

mod seek;
mod space;

pub use seek::{cma_es, grid};
pub use space::Space;
