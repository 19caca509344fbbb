//! Studies that compare ways to pre-train one model: each way from the same weights, through the same data.

mod graph;
mod recipe;
mod results;

pub use graph::Comparison;
pub use recipe::KEY as COMPARE;
