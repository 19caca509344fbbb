//! Model families that can be run.

pub mod bert;
pub mod config;
mod dvae;
mod experts;
mod fused_block;
pub mod heads;
mod multiway;
mod multiway_block;
mod recorded_block;
mod text_embeddings;
mod tower;
pub mod vit;

pub use bert::Bert;
pub use config::{Config, Overrides, ShallowAttention};
pub use dvae::Dvae;
pub use experts::Experts;
pub use heads::Heads;
pub use multiway::{Joint, Multiway};
pub use multiway_block::{Block, Segment};
pub use vit::Vit;
