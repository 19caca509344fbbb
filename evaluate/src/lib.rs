//! The place of model forward passes, tasks, metrics and reports.
//!
//! Nothing is implemented here yet: this version of vlmerge reads, converts, compares and merges
//! checkpoints, which is the work of the `merge` crate.
