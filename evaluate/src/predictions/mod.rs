//! Predictions and ground truth from the files in which they are published, matched by id.

pub mod captions;
pub(crate) mod file;
mod json_place;
pub mod nlvr2;
pub mod retrieval;
pub mod score_file;
pub mod vqa;
