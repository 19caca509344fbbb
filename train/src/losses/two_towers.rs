//! Losses of two towers.

use evaluate::forward::Given;

use super::{LossSpec, pairs};
use crate::Result;
use crate::batch::Batch;

/// By the names of ZeroVL's golden folder, without label smoothing.
pub(super) const LOSSES: &[LossSpec] = &[LossSpec {
    family: "zerovl",
    name: "nce",
    objective: "nce",
    inputs: &["image", "input_ids", "attention_mask"],
    batch,
}];

fn batch(given: &Given) -> Result<Batch> {
    pairs(given, "image", ["input_ids", "attention_mask"])
}
