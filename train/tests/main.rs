//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod fixture;
mod objectives;
mod groups;
mod logs;
mod optimizer;
