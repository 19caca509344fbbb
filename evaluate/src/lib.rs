//! Models on data, to numbers.
//!
//! The main types in the order in which `vlmerge evaluate` uses them:
//!
//! 1. [`models::open`] opens a checkpoint of any family in [`models::FAMILIES`]; what it can do is asked
//!    for by capability ([`models::DualEncoder`], [`models::FusionEncoder`], [`models::Captioner`]).
//!    [`Weights`] hands a family its tensors by name, [`nn`] holds the blocks that models are made of.
//! 2. [`datasets`] opens benchmarks as arrow files, which [`build()`](build::build) makes of public
//!    downloads; [`images`] and [`text`] turn pictures and words into what models take.
//! 3. A [`tasks::Task`] runs a model on a split through a [`tasks::Runner`];
//!    [`capture`] fills the gram matrices of [`merge::gram`] on the way.
//! 4. [`metrics`] are pure functions of arrays and strings. Each ends in a [`Sample`]: the
//!    share of every unit of the data set (an image with its captions, an image with its questions, a
//!    sentence with its pictures) in each number. [`Bootstrap`](metrics::bootstrap::Bootstrap) resamples
//!    the units: intervals, and a paired test between two samples.
//! 5. [`measure`] measures several models on one split and keeps finished results.
//! 6. [`reports`] are results in one form for every task, and pages and tables of them.
//!
//! [`encode`] writes embeddings of any pictures and texts. [`predictions`] judges others' predictions,
//! from files, without a model. [`outside`] reads results of other programs.

pub mod batch;
pub mod capture;
pub mod crossing;
pub mod device;
mod error;
pub mod ranks;
mod sample;
mod var_builder;
pub mod weights;

pub mod build;
pub mod datasets;
pub mod encode;
pub mod forward;
pub mod images;
pub mod measure;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod outside;
pub mod predictions;
pub mod reports;
pub mod streams;
pub mod tasks;
pub mod text;
pub mod writing;

pub use error::{
    DataFault, EncodeFault, Error, GivenFault, JudgedFault, LabelFault, ModelFault, OutsideFault,
    RanksFault, ReportFault, Result, ScoresFault, ShortlistFault, TextFault,
};
pub use sample::{Combination, Contribution, Quantity, Ratio, Sample, Unit};
pub use weights::Weights;
