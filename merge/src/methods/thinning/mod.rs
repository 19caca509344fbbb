//! Thins task vectors and adds their remaining elements.

pub(in crate::methods) mod consensus;
pub(in crate::methods) mod draws;
pub(in crate::methods) mod sparsifier;
pub(in crate::methods) mod task_vectors;
