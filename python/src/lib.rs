//! The compiled half of the Python package `vlmerge`: what `python/vlmerge` calls.
//!
//! Functions take and return plain values, arrays of bytes and JSON; names, types and documentation for users are those
//! of the Python files.

#![forbid(unsafe_code)]

mod arrays;
mod errors;
mod job;
mod measuring;
mod merging;
mod methods;
mod reader;
mod saving;

/// The module `vlmerge._vlmerge`.
#[pyo3::pymodule]
mod _vlmerge {
    #[pymodule_export]
    use crate::measuring::{diff, distance, grams, inspect};
    #[pymodule_export]
    use crate::merging::merge_by_recipe;
    #[pymodule_export]
    use crate::methods::add_method;
    #[pymodule_export]
    use crate::reader::Reader;
    #[pymodule_export]
    use crate::saving::save;

    /// The version of the package.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
