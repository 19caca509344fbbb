//! The tests of the crate's public behavior, one module per subject.

mod torch_corpus;
