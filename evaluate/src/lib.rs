//! How good are predictions? Metrics of the tasks, with intervals and paired tests.
//!
//! The main types in the order in which `vlmerge score` uses them:
//!
//! 1. [`predictions`] reads what a model answered and what is true, from the files in which others
//!    publish them, and matches them by id.
//! 2. [`metrics`] are pure functions of arrays and strings: [`metrics::retrieval`],
//!    [`metrics::vqa`] with [`metrics::answers`], [`metrics::nlvr2`].
//! 3. Each ends in a [`Sample`]: what every unit of the data set (an image with its captions, an
//!    image with its questions, a sentence with its pictures) adds to each number.
//! 4. [`Bootstrap`](metrics::bootstrap::Bootstrap) draws units anew: intervals, and a paired test
//!    between two samples of the same units.
//!
//! Models and data sets have no place here yet.

pub mod capture;
pub mod device;
mod error;
mod sample;
pub mod weights;

pub mod build;
pub mod datasets;
pub mod images;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod predictions;
pub mod reports;
pub mod tasks;
pub mod text;

pub use error::{Error, Result};
pub use sample::{Contribution, Quantity, Ratio, Sample, Unit};
pub use weights::Weights;
