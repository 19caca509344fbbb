//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod build;
mod fixture;
mod images;
mod nlvr2;
mod retrieval;
mod scores;
mod tables;
mod text;
mod vqa;
