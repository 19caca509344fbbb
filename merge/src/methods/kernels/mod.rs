//! Arithmetic of chunks that several methods share.

pub(in crate::methods) mod element;
pub(in crate::methods) mod inner_products;
pub(in crate::methods) mod last_axis;
pub(in crate::methods) mod masks;
pub(in crate::methods) mod of_element;
pub(in crate::methods) mod overlap;
pub(in crate::methods) mod overview;
pub(in crate::methods) mod passes;
pub(in crate::methods) mod sums;
pub(in crate::methods) mod two_ends;
pub(in crate::methods) mod weighted;
