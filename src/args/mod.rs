//! Flags that several verbs share, below the verbs.

pub mod data;
pub mod flm;
pub mod global;
pub mod number;
pub mod run;
pub mod write;
