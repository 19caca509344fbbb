//! Losses of CLIP and SigLIP.

use evaluate::batch::Texts;
use evaluate::forward::Given;

use super::{LossSpec, images};
use crate::Result;
use crate::batch::Batch;

/// By the names of the golden folder.
pub(super) const LOSSES: &[LossSpec] = &[
    spec("clip", "itc", PAIRS, pairs),
    spec("sigmoid", "sigmoid", PAIRS, pairs),
    spec(
        "image_classification",
        "image_classification",
        &["pixel_values", "label"],
        classified,
    ),
];

const fn spec(
    name: &'static str,
    objective: &'static str,
    inputs: &'static [&'static str],
    batch: fn(&Given) -> Result<Batch>,
) -> LossSpec {
    LossSpec::of("clip", name, objective, inputs, batch)
}

/// Texts beside them may have any of [`IDS`].
const PAIRS: &[&str] = &["pixel_values"];

/// Names of ids of texts, of which the first that is given counts.
const IDS: [&str; 3] = ["input_ids", "input_ids_pad0", "input_ids_pad_eot"];

/// Pairs as published models read them: padding is a token like others.
fn pairs(given: &Given) -> Result<Batch> {
    let ids = IDS.into_iter().find(|ids| given.has(ids));
    let ids = ids.unwrap_or(IDS[0]);
    given.check("clip", &["pixel_values", ids])?;
    let ids = given.tensor(ids)?.clone();
    let kept = ids.ones_like()?;
    Ok(Batch {
        text: Some(Texts::of_tensors(ids, kept)?),
        ..images(given, "pixel_values")?
    })
}

fn classified(given: &Given) -> Result<Batch> {
    Ok(Batch {
        classes: Some(given.classes("label")?),
        ..images(given, "pixel_values")?
    })
}
