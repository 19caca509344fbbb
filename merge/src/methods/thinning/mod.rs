//! Which elements of task vectors stay, and how what stays is added.

pub(in crate::methods) mod consensus;
pub(in crate::methods) mod draws;
pub(in crate::methods) mod sparsifier;
pub(in crate::methods) mod task_vectors;
