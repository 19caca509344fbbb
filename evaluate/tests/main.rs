//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod conformance;
mod fixture;
mod forward;
mod fused;
mod images;
mod nlvr2;
mod retrieval;
mod scores;
mod tables;
mod towers;
mod vqa;
