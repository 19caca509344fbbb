//! Losses of EVE.

use evaluate::forward::Given;

use super::{BalancePart, LossSpec, pairs};
use crate::Result;
use crate::batch::Batch;
use crate::objectives::{Negatives, PairSettings};

const RETRIEVAL: &[&str] = &[
    "ids",
    "atts",
    "image",
    "idx",
    "image_for_text",
    "text_for_image",
];
const VQA: &[&str] = &["ids", "atts", "image", "vqa_targets"];
const NLVR2: &[&str] = &["ids", "atts", "image", "image2", "nlvr_targets"];

use BalancePart::{Added, Alone, None as Without};

/// By the names of tasks of EVE's golden folder, and those of parts of their losses behind a dot.
pub(super) const LOSSES: &[LossSpec] = &[
    LossSpec {
        beside: &["itm"],
        ..loss("retrieval", "itc", Added, RETRIEVAL, retrieval)
    },
    LossSpec {
        inputs: &["ids", "atts", "image", "idx"],
        ..loss("retrieval.itc", "itc", Without, RETRIEVAL, contrast)
    },
    loss("retrieval.itm", "itm", Without, RETRIEVAL, retrieval),
    LossSpec {
        beside: &["itm"],
        ..loss("retrieval.aux", "itc", Alone, RETRIEVAL, retrieval)
    },
    loss("vqa", "vqa", Without, VQA, vqa),
    loss("vqa.aux", "vqa", Alone, VQA, vqa),
    loss("vqa.loss_plus_aux", "vqa", Added, VQA, vqa),
    loss("nlvr2", "nlvr2", Added, NLVR2, nlvr2),
    loss("nlvr2.ce", "nlvr2", Without, NLVR2, nlvr2),
    loss("nlvr2.aux", "nlvr2", Alone, NLVR2, nlvr2),
];

/// Passes in the order in which tables of noise count them.
const PASSES: &[(&str, usize)] = &[
    ("itc.image", 0),
    ("itc.text", 1),
    ("itm.positive", 2),
    ("itm.other_image", 3),
    ("itm.other_text", 4),
    ("vqa", 0),
    ("nlvr2.first", 0),
    ("nlvr2.second", 1),
];

const fn loss(
    name: &'static str,
    objective: &'static str,
    balance: BalancePart,
    inputs: &'static [&'static str],
    batch: fn(&Given) -> Result<Batch>,
) -> LossSpec {
    LossSpec {
        balance,
        pairs: Some(PairSettings::EVE),
        passes: PASSES,
        ..LossSpec::of("eve", name, objective, inputs, batch)
    }
}

fn read(given: &Given) -> Result<Batch> {
    pairs(given, "image", ["ids", "atts"])
}

fn contrast(given: &Given) -> Result<Batch> {
    Ok(Batch {
        image_numbers: Some(given.classes("idx")?),
        ..read(given)?
    })
}

fn retrieval(given: &Given) -> Result<Batch> {
    Ok(Batch {
        negatives: Some(Negatives {
            images: given.classes("image_for_text")?,
            texts: given.classes("text_for_image")?,
        }),
        ..contrast(given)?
    })
}

fn vqa(given: &Given) -> Result<Batch> {
    Ok(Batch {
        answers: Some(given.tensor("vqa_targets")?.clone()),
        ..read(given)?
    })
}

fn nlvr2(given: &Given) -> Result<Batch> {
    Ok(Batch {
        second_image: Some(given.images("image2")?),
        classes: Some(given.classes("nlvr_targets")?),
        ..read(given)?
    })
}
