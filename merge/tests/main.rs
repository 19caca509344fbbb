//! The tests of the crate, one file per subject.

mod safetensors_corpus;
mod writer;
