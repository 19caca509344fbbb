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
#[cfg(feature = "remote")]
#[path = "../merge/tests/range_server.rs"]
mod range_server;
#[cfg(feature = "remote")]
mod remote;
mod report;
mod score;
mod study;
mod training;
