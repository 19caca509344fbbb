//! Losses of two towers.

use evaluate::forward::Given;

use super::LossSpec;
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
    let image = given.images("image")?;
    Ok(Batch {
        n: image.pixels.dim(0)?,
        image: Some(image),
        text: Some(given.texts("input_ids", "attention_mask")?),
        ..Batch::default()
    })
}
