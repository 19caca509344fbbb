//! Training: objectives, the optimizer, and the one loop.
//!
//! The main types in the order in which a run uses them:
//!
//! 1. A [`recipe::TrainRecipe`] says the work; [`checked`](recipe::TrainRecipe::checked), it is a
//!    [`recipe::CheckedRecipe`].
//! 2. A [`run::TrainPlan`] opens data and weights and writes nothing; a [`run::Trainer`] begins it, takes it
//!    up and brings it to its end: the one loop.
//! 3. [`augment`] turns a picture into a random view of it, and words into masked words; [`data`] loads
//!    them ahead.
//! 4. [`objectives`] turn a batch and a model into losses; [`objectives::OBJECTIVES`] is their table.
//! 5. [`optim`] holds the update rule, which parameter gets which rate and decay, the schedule.
//! 6. [`fisher`] squares the gradients of those losses example by example, for merges.
//! 7. [`collective`] joins processes that train one model together.
//! 8. [`adamerging`] learns coefficients of task vectors from pictures without labels.
//! 9. [`log`] writes what happens: JSON lines and TensorBoard's event files.

#![forbid(unsafe_code)]

mod error;

pub mod adamerging;
pub mod augment;
pub mod batch;
pub mod collective;
pub mod data;
pub mod fisher;
pub mod log;
pub mod losses;
pub mod objectives;
pub mod optim;
pub mod recipe;
pub mod run;

pub use error::{Error, Result};
