//! The one test harness of this crate: one module per subject.
#![allow(missing_docs, reason = "test names are the documentation")]

mod checks;
mod fixture;
mod fused_blocks;
mod groups;
mod logs;
mod model_record;
mod objectives;
mod operations;
mod optimizer;
mod patches;
mod ranks;
mod recipes;
mod running;
mod shared_runs;
mod threads;
mod views;
mod words;
