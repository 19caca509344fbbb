//! Losses of two towers.

use evaluate::forward::Given;

use super::{BalancePart, LossSpec, images, pairs};
use crate::Result;
use crate::batch::Batch;

/// By the names of ZeroVL's golden folder.
pub(super) const LOSSES: &[LossSpec] = &[
    LossSpec {
        family: "zerovl",
        name: "nce",
        objective: "nce",
        language: None,
        beside: &[],
        balance: BalancePart::None,
        pairs: None,
        passes: &[],
        inputs: PAIRS,
        batch,
    },
    LossSpec {
        family: "zerovl",
        name: "mixup",
        objective: "mixup_nce",
        language: None,
        beside: &[],
        balance: BalancePart::None,
        pairs: None,
        passes: &[],
        inputs: PAIRS,
        batch,
    },
    LossSpec {
        family: "zerovl",
        name: "linear_probe",
        objective: "linear_probe",
        language: None,
        beside: &[],
        balance: BalancePart::None,
        pairs: None,
        passes: &[],
        inputs: &["image", "label"],
        batch: classified,
    },
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
