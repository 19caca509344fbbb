//! Model families that can be run.

pub mod config;
mod experts;
pub mod heads;
mod multiway;
mod multiway_block;

pub use config::{Config, Overrides, ShallowAttention};
pub use experts::Experts;
pub use heads::Heads;
pub use multiway::{Joint, Multiway};
pub use multiway_block::{Block, Segment};
