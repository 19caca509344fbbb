//! Encoders of one modality, which families put together.
//!
//! A tower is loaded under a prefix, the part of a checkpoint's keys that comes before its own. A layer
//! that a tap sees is named after its key, prefix and all.

pub mod bert;
pub(super) mod bert_embeddings;
mod bert_fused;
pub(super) mod bert_layer;
pub(super) mod bert_packed;
pub(super) mod sizes;
pub mod vit;
mod vit_form;

use candle_core::{Result, Tensor};

pub use bert::Bert;
pub use sizes::Shapes;
pub use vit::Vit;
pub use vit_form::Form as VitForm;

/// The first token of each sequence: `(b, n, d) -> (b, d)`.
pub(super) fn first(x: &Tensor) -> Result<Tensor> {
    x.narrow(1, 0, 1)?.squeeze(1)
}

/// The first `n` tokens of each sequence, or all if there are fewer.
pub(super) fn first_tokens(x: &Tensor, n: usize) -> Result<Tensor> {
    match n < x.dim(1)? {
        true => x.narrow(1, 0, n)?.contiguous(),
        false => Ok(x.clone()),
    }
}
