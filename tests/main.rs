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
mod recipes;
mod report;
mod resuming;
mod score;
mod searching;
mod soups;
mod study;
mod training;
