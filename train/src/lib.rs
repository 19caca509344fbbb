//! Training: objectives, the optimizer, and the one loop.
//!
//! The main types in the order in which a run uses them:
//!
//! 1. [`augment`] turns a picture into a random view of it, and words into masked words.
//! 2. [`objectives`] turn a batch and a model into losses.
//! 3. [`optim`] holds the update rule, which parameter gets which rate and decay, the schedule.
//! 4. [`log`] writes what happens: JSON lines and TensorBoard's event files.

#![forbid(unsafe_code)]

mod error;

pub mod augment;
pub mod batch;
pub mod collective;
pub mod data;
pub mod log;
pub mod objectives;
pub mod optim;
pub mod recipe;
pub mod run;

pub use error::{Error, Result};
