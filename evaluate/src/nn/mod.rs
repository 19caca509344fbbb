//! Blocks that models share.

mod attention;
mod cpu;
mod cross_entropy;
mod embedding;
mod fused;
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
pub(crate) use cpu::buffers::Buffer;
pub use cpu::buffers::Buffers;
pub(crate) use cpu::host::{Host, host_values};
pub(crate) use cpu::slices::Keep;
pub(crate) use cpu::takes as is_on_host;
pub use cross_entropy::cross_entropy;
pub use embedding::Embedding;
pub(crate) use fused::{AttentionBranch, FfnBranch, KeptAttention, is_leaf};
pub use gradients::{Gradient, Gradients};
pub use layer_scale::LayerScale;
pub use linear::{Linear, gelu};
pub use mlp::Mlp;
pub use norm::{LayerNorm, unit_length};
pub use omission::Omission;
pub use pass::{Mask, Pass, Tap};
pub use patch_embed::PatchEmbed;
pub use relative_position::{Pairs, RelativePosition};
pub use residual::Residual;
pub use tape::{Recorded, Tape};
