//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod catalog;
mod diff;
mod distance;
mod every_method;
mod fixture;
mod golden_merge;
mod layouts;
mod memory;
mod methods_document;
mod relative_position;
mod safetensors_corpus;
mod statistics;
mod stored;
mod torch_corpus;
mod writer;
