//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod checks;
mod fixture;
mod groups;
mod logs;
mod objectives;
mod optimizer;
mod ranks;
mod recipes;
mod running;
mod threads;
