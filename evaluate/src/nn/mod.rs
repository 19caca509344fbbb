//! Blocks that models share.

mod activation;
mod attend;
mod attention;
mod batch_norm;
mod convolution;
mod cpu;
mod cross_entropy;
mod dropping;
mod embedding;
mod fused;
mod gradients;
mod layer_scale;
mod linear;
mod mask;
mod mlp;
mod norm;
mod omission;
mod packing;
mod pass;
mod patch_embed;
mod picked;
mod relative_position;
mod residual;
mod routing;
mod side_losses;
mod tape;

pub use activation::{Activation, gelu, relu};
pub use attend::{Bias, attend, attend_packed, attend_to, attention_shares, mix};
pub(crate) use attend::{halves, unpack};
pub use attention::Attention;
pub use batch_norm::{BatchNorm, BatchStatistics, Norming};
pub use convolution::Convolution;
pub(crate) use cpu::buffers::Buffer;
pub use cpu::buffers::Buffers;
pub(crate) use cpu::host::Host;
pub use cpu::pool::in_pool;
pub(crate) use cpu::takes as is_on_host;
pub use cross_entropy::{Guessed, cross_entropy, n_right};
pub use dropping::{Dropping, GivenDrops};
pub use embedding::Embedding;
pub(crate) use fused::{
    AttentionHalf, CrossHalf, ExchangedExperts, FfnHalf, KeptAttentionHalf, KeptCrossHalf,
    KeptFfnHalf, Network, OnSlices, Packed, PackedBias, PreNormBlock, Projections, RoutedExperts,
    Sees, Separate, Taken, WordHead, fits_slices, is_leaf, project_rows, record_on_slices,
    record_projections, side_by_side,
};
pub use gradients::{Gradient, Gradients};
pub use layer_scale::LayerScale;
pub use linear::Linear;
pub use mask::Mask;
pub use mlp::Mlp;
pub use norm::{LayerNorm, unit_length, unit_length_with};
pub use omission::Omission;
pub(crate) use packing::{PackedPairs, Packing, keep_texts_of_blind_rows};
pub use pass::{Pass, Tap};
pub use patch_embed::PatchEmbed;
pub(crate) use picked::Picked;
pub use relative_position::{Pairs, RelativePosition};
pub use residual::Residual;
pub use routing::{Capacity, GivenNoise, Noise, Routing, gumbel};
pub use side_losses::SideLosses;
pub use tape::{Recorded, Tape};
