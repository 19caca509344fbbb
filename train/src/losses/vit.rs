//! Losses of classifiers of pictures.

use evaluate::forward::Given;

use super::{LossSpec, images};
use crate::Result;
use crate::batch::Batch;

/// By the names of the golden folder.
pub(super) const LOSSES: &[LossSpec] = &[LossSpec::of(
    "vit",
    "image_classification",
    "image_classification",
    &["pixel_values", "label"],
    classified,
)];

fn classified(given: &Given) -> Result<Batch> {
    Ok(Batch {
        classes: Some(given.classes("label")?),
        ..images(given, "pixel_values")?
    })
}
