//! The program end to end: one file per walk.
#![allow(missing_docs, reason = "test names are the documentation")]

mod bad_recipes;
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
#[allow(
    dead_code,
    reason = "its faults are for the tests of the crate `merge`"
)]
mod range_server;
mod recipes;
#[cfg(feature = "remote")]
mod remote;
mod report;
mod resuming;
mod score;
mod searching;
mod study;
mod training;
