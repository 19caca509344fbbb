//! Finds the value of a given rank, and the chance that a rank has.

pub(in crate::methods) mod by_count;
pub(in crate::methods) mod by_sample;
pub(in crate::methods) mod over_all;
pub(in crate::methods) mod within_rows;
