//! Losses of two towers.

use evaluate::forward::Given;

use super::{LossSpec, images, pairs};
use crate::Result;
use crate::batch::Batch;

/// By the names of ZeroVL's golden folder.
pub(super) const LOSSES: &[LossSpec] = &[
    LossSpec::of("zerovl", "nce", "nce", PAIRS, batch),
    LossSpec::of("zerovl", "mixup", "mixup_nce", PAIRS, batch),
    LossSpec::of(
        "zerovl",
        "linear_probe",
        "linear_probe",
        &["image", "label"],
        classified,
    ),
];

const PAIRS: &[&str] = &["image", "input_ids", "attention_mask"];

fn batch(given: &Given) -> Result<Batch> {
    pairs(given, "image", ["input_ids", "attention_mask"])
}

fn classified(given: &Given) -> Result<Batch> {
    Ok(Batch {
        classes: Some(given.classes("label")?),
        ..images(given, "image")?
    })
}
