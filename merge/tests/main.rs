//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod fixture;
mod golden_merge;
mod safetensors_corpus;
mod writer;
