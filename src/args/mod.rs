//! Flags that several verbs share, below the verbs.

pub mod convert;
pub mod data;
pub mod experts;
pub mod flm;
pub mod gguf;
pub mod global;
pub mod judging;
pub mod merge;
pub mod model;
pub mod number;
pub mod results;
pub mod run;
pub mod write;
