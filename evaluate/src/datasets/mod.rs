//! Benchmarks as users have them: folders of arrow files.
//!
//! [`captions::CaptionSet`], [`vqa::VqaSet`] and [`nlvr2::Nlvr2Set`] open a split: texts and ids
//! are read at once, pictures on request. [`prefetch()`] runs the decoding ahead on other threads.

pub mod arrow;
pub mod captions;
pub mod nlvr2;
pub mod overview;
pub mod prefetch;
mod splits;
pub mod texts;
pub mod vqa;

pub use prefetch::{Prefetch, prefetch};
pub use splits::{DATASETS, Dataset, Kind, Split};
