//! Which value has a given rank, and which chance a rank has.

pub(in crate::methods) mod by_count;
pub(in crate::methods) mod by_sample;
pub(in crate::methods) mod over_all;
pub(in crate::methods) mod within_rows;
