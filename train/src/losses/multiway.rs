//! Losses of the multiway family.

use evaluate::forward::Given;

use super::{LossSpec, images, pairs};
use crate::Result;
use crate::batch::{Batch, MaskedPatches, MaskedWords};

/// By the names of vl-merging's golden folder.
pub(super) const LOSSES: &[LossSpec] = &[
    loss(
        "vqa",
        "vqa",
        &["text_ids", "text_masks", "image", "vqa_targets"],
        vqa,
    ),
    loss(
        "nlvr2",
        "nlvr2",
        &["text_ids", "text_masks", "image", "image_1", "nlvr2_labels"],
        nlvr2,
    ),
    loss("irtr", "retrieval", PAIRS, irtr),
    loss("ifm", "itc", PAIRS, irtr),
    loss("itm", "itm", &["text_ids", "text_masks", "image"], pair),
    loss(
        "mlm",
        "mlm",
        &[
            "text_ids",
            "text_masks",
            "image",
            "text_ids_mlm",
            "text_labels_mlm",
        ],
        mlm,
    ),
    loss(
        "text_only_mlm",
        "text_mlm",
        &["text_ids", "text_masks", "text_ids_mlm", "text_labels_mlm"],
        text_only_mlm,
    ),
    loss(
        "img_cls",
        "image_classification",
        &["image", "cls_labels"],
        img_cls,
    ),
    loss(
        "mim",
        "mim",
        &[
            "text_ids",
            "text_masks",
            "image",
            "bool_masked_pos",
            "target_image",
        ],
        mim,
    ),
    loss(
        "image_mim",
        "image_mim",
        &["image", "bool_masked_pos", "target_image"],
        image_mim,
    ),
];

/// The inputs of the contrastive losses.
const PAIRS: &[&str] = &["irtr_text_ids", "irtr_text_masks", "irtr_image"];

const fn loss(
    name: &'static str,
    objective: &'static str,
    inputs: &'static [&'static str],
    batch: fn(&Given) -> Result<Batch>,
) -> LossSpec {
    LossSpec::of("multiway", name, objective, inputs, batch)
}

fn pair(given: &Given) -> Result<Batch> {
    pairs(given, "image", ["text_ids", "text_masks"])
}

fn irtr(given: &Given) -> Result<Batch> {
    pairs(given, "irtr_image", ["irtr_text_ids", "irtr_text_masks"])
}

fn vqa(given: &Given) -> Result<Batch> {
    Ok(Batch {
        answers: Some(given.tensor("vqa_targets")?.clone()),
        ..pair(given)?
    })
}

fn nlvr2(given: &Given) -> Result<Batch> {
    Ok(Batch {
        second_image: Some(given.images("image_1")?),
        classes: Some(given.classes("nlvr2_labels")?),
        ..pair(given)?
    })
}

fn img_cls(given: &Given) -> Result<Batch> {
    Ok(Batch {
        classes: Some(given.classes("cls_labels")?),
        ..images(given, "image")?
    })
}

fn mlm(given: &Given) -> Result<Batch> {
    Ok(Batch {
        masked_words: Some(masked_words(given)?),
        ..pair(given)?
    })
}

fn text_only_mlm(given: &Given) -> Result<Batch> {
    let text = given.texts("text_ids", "text_masks")?;
    Ok(Batch {
        n: text.ids.dim(0)?,
        text: Some(text),
        masked_words: Some(masked_words(given)?),
        ..Batch::default()
    })
}

fn masked_words(given: &Given) -> Result<MaskedWords> {
    let labels = given.integers("text_labels_mlm")?;
    let ids = given.tensor("text_ids_mlm")?.clone();
    Ok(MaskedWords::of_labels(ids, &labels))
}

fn mim(given: &Given) -> Result<Batch> {
    Ok(Batch {
        masked_patches: Some(masked_patches(given)?),
        ..pair(given)?
    })
}

fn image_mim(given: &Given) -> Result<Batch> {
    Ok(Batch {
        masked_patches: Some(masked_patches(given)?),
        ..images(given, "image")?
    })
}

fn masked_patches(given: &Given) -> Result<MaskedPatches> {
    Ok(MaskedPatches {
        masked: given.tensor("bool_masked_pos")?.clone(),
        target_image: given.tensor("target_image")?.clone(),
    })
}
