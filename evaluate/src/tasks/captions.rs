//! Captions of images, judged from files against those of people.

use super::spec::{NumberSpec, TaskSpec, number};
use crate::datasets::Kind;
use crate::sample::Unit;

/// The row of captions. No model that runs here writes text yet, so files alone are judged.
pub const SPEC: TaskSpec = TaskSpec {
    name: "captions",
    aliases: &[],
    title: "Captions",
    about: "Captions for images, from files",
    kind: Kind::Captions,
    dataset: "coco",
    default_split: "test",
    headline: "cider",
    numbers: NUMBERS,
    prediction_ending: None,
    published_experts: None,
    options: &[],
    open: None,
};

const NUMBERS: &[NumberSpec] = &[
    number("bleu_1", "BLEU-1", Unit::Fraction, false),
    number("bleu_2", "BLEU-2", Unit::Fraction, false),
    number("bleu_3", "BLEU-3", Unit::Fraction, false),
    number("bleu_4", "BLEU-4", Unit::Fraction, true),
    number("rouge_l", "ROUGE-L", Unit::Fraction, false),
    number("cider", "CIDEr", Unit::Tenfold, true),
];
