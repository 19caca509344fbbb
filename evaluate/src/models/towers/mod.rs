//! Encoders of one modality, which families put together.
//!
//! A tower is loaded under a prefix, the part of a checkpoint's keys that comes before its own. What
//! it shows to a tap is named after its keys, prefix and all.

pub mod bert;
mod bert_fused;
pub(super) mod sizes;
pub mod vit;
mod vit_fused;

pub use bert::Bert;
pub use sizes::Shapes;
pub use vit::Vit;
