//! Losses of FLM.

use evaluate::forward::Given;
use evaluate::models::flm::named;

use super::{LossSpec, pairs};
use crate::Result;
use crate::batch::{Batch, MaskedWords};
use crate::objectives::LanguageSettings;

/// The inputs of losses of words.
const WORDS: &[&str] = &["text_ids", "text_masks", "image"];

/// The inputs of losses of queries.
const QUERIES: &[&str] = &["text_ids", "text_masks", "text_all_masks_ids", "image"];

/// By the names of FLM's golden folder.
pub(super) const LOSSES: &[LossSpec] = &[
    loss("flm", "flm", QUERIES, queries),
    loss("ar", "ar", WORDS, words),
    loss("prefix_lm", "prefix_lm", WORDS, words),
    loss(
        "mlm",
        "mlm",
        &[
            "text_ids",
            "text_masks",
            "text_ids_mlm",
            "text_labels_mlm",
            "image",
        ],
        masked,
    ),
    loss(
        "itm_fixed",
        "random_itm",
        &[
            "text_ids",
            "text_masks",
            "image",
            "false_image_0",
            "itm_labels",
        ],
        matching,
    ),
    loss(
        "irtr",
        "ranking",
        &[
            "text_ids",
            "text_masks",
            "image",
            "false_text_{i}_ids",
            "false_text_{i}_masks",
        ],
        ranking,
    ),
    loss(
        "vqa",
        "vqa",
        &["text_ids", "text_masks", "image", "vqa_targets"],
        vqa,
    ),
    loss(
        "nlvr2",
        "nlvr2",
        &[
            "text_ids",
            "text_masks",
            "image_0",
            "image_1",
            "nlvr2_labels",
        ],
        nlvr2,
    ),
    loss("caption_forward_stream", "captioning", WORDS, words),
    LossSpec {
        language: Some(LanguageSettings {
            as_published: true,
            ..LanguageSettings::PUBLISHED
        }),
        ..loss(
            "caption_upstream_flm_backbone",
            "captioning",
            QUERIES,
            queries,
        )
    },
];

const fn loss(
    name: &'static str,
    objective: &'static str,
    inputs: &'static [&'static str],
    batch: fn(&Given) -> Result<Batch>,
) -> LossSpec {
    LossSpec::of("flm", name, objective, inputs, batch)
}

fn words(given: &Given) -> Result<Batch> {
    pairs(given, "image", ["text_ids", "text_masks"])
}

fn queries(given: &Given) -> Result<Batch> {
    Ok(Batch {
        queries: Some(given.tensor("text_all_masks_ids")?.clone()),
        spans: named::spans(given)?,
        ..words(given)?
    })
}

fn masked(given: &Given) -> Result<Batch> {
    Ok(Batch {
        masked_words: Some(MaskedWords::of_labels(
            given.tensor("text_ids_mlm")?.clone(),
            &given.integers("text_labels_mlm")?,
        )),
        ..words(given)?
    })
}

fn matching(given: &Given) -> Result<Batch> {
    Ok(Batch {
        other_image: Some(given.images("false_image_0")?),
        classes: Some(given.classes("itm_labels")?),
        ..words(given)?
    })
}

fn ranking(given: &Given) -> Result<Batch> {
    let n = given.numbered("false_text_{i}_ids").len();
    let texts = (0..n).map(|i| {
        let name = |part: &str| format!("false_text_{i}_{part}");
        given.texts(&name("ids"), &name("masks"))
    });
    Ok(Batch {
        other_texts: texts.collect::<evaluate::Result<_>>()?,
        ..words(given)?
    })
}

fn vqa(given: &Given) -> Result<Batch> {
    Ok(Batch {
        answers: Some(given.tensor("vqa_targets")?.clone()),
        ..words(given)?
    })
}

fn nlvr2(given: &Given) -> Result<Batch> {
    Ok(Batch {
        second_image: Some(given.images("image_1")?),
        classes: Some(given.classes("nlvr2_labels")?),
        ..pairs(given, "image_0", ["text_ids", "text_masks"])?
    })
}
