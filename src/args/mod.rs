//! Flags that several verbs share, below the verbs.

pub mod convert;
#[cfg(feature = "models")]
pub mod data;
pub mod experts;
pub mod flm;
pub mod gguf;
pub mod global;
#[cfg(feature = "models")]
pub mod judging;
pub mod merge;
#[cfg(feature = "models")]
pub mod model;
pub mod number;
#[cfg(feature = "models")]
pub mod results;
#[cfg(feature = "models")]
pub mod run;
pub mod write;
