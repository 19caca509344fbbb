//! Blocks that models share.

mod attention;
mod cpu;
mod layer_scale;
mod linear;
mod mlp;
mod norm;
mod pass;
mod patch_embed;
mod relative_position;

pub use attention::{Attended, Attention, attend};
pub use layer_scale::LayerScale;
pub use linear::{Embedding, Linear, gelu};
pub use mlp::Mlp;
pub use norm::{LayerNorm, unit_length};
pub use pass::{Mask, Pass, Tap};
pub use patch_embed::PatchEmbed;
pub use relative_position::{Pairs, RelativePosition};
