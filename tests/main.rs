//! The program end to end: one file per walk.
#![allow(missing_docs, reason = "test names are the documentation")]

mod compare;
mod convert;
mod corpus;
mod data;
mod evaluating;
mod inspect;
mod merging;
mod program;
mod report;
mod score;
mod study;
mod training;
