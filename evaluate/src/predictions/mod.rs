//! Predictions and ground truth from the files in which they are published, matched by id.

pub(crate) mod file;
pub mod nlvr2;
pub mod retrieval;
pub mod vqa;
