//! The place of training objectives, the optimizer and the one loop.
//!
//! Nothing is implemented here yet: this version of vlmerge reads, converts, compares and merges
//! checkpoints, which is the work of the `merge` crate.
