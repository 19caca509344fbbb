//! Blocks that models share.

mod attention;
mod cpu;
mod cross_entropy;
mod gradients;
mod layer_scale;
mod linear;
mod mlp;
mod norm;
mod omission;
mod pass;
mod patch_embed;
mod relative_position;
mod residual;
mod tape;

pub use attention::{Attended, Attention, attend};
pub use cross_entropy::cross_entropy;
pub use gradients::{Gradient, Gradients};
pub use layer_scale::LayerScale;
pub use linear::{Embedding, Linear, gelu};
pub use mlp::Mlp;
pub use norm::{LayerNorm, unit_length};
pub use omission::Omission;
pub use pass::{Mask, Pass, Tap};
pub use patch_embed::PatchEmbed;
pub use relative_position::{Pairs, RelativePosition};
pub use residual::Residual;
pub use tape::{Recorded, Tape};
