//! Golden sets: every number that published programs printed, driven by the sets' manifests alone.
//! `VLMERGE_GOLDEN=DIR` runs these tests over another set (`CONTRIBUTING.md`, *Golden sets*).

pub mod build;
pub mod captions;
pub mod forward;
mod grams;
pub mod models;
mod nlvr2;
mod retrieval;
mod scores;
mod tables;
mod vqa;
