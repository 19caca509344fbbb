//! Flags that several verbs share, below the verbs.

pub mod data;
