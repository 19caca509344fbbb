//! Captions in words: BLEU, ROUGE-L and CIDEr-D against the captions of people.
//!
//! 1. [`tokenize`] splits captions as the official tool does.
//! 2. [`Judged`] holds what a caption adds to each score, [`sample`] turns many into numbers that
//!    can be drawn.
//!
//! Everything is a function of tokenized captions: tokens in lower case with a space between two.
//!
//! References: Papineni et al. 2002, <https://aclanthology.org/P02-1040>; Lin 2004,
//! <https://aclanthology.org/W04-1013>; Vedantam et al. 2015, <https://arxiv.org/abs/1411.5726>; Chen
//! et al. 2015, <https://arxiv.org/abs/1504.00325>, for the details in which captioning differs.

mod bleu;
mod cider;
mod rouge;
mod tokens;

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::sample::{Combination, Quantity, Ratio, Sample, Unit};

pub use bleu::{BleuCounts, ORDERS, bleu};
pub use cider::Cider;
pub use rouge::rouge_l;
pub use tokens::tokenize;

/// The count of each n-gram of one length in a caption, in an order that sums do not change with.
type NgramCounts<'a> = BTreeMap<Vec<&'a str>, usize>;

/// The n-grams of a caption, for n from 1 to [`ORDERS`].
fn ngrams(caption: &str) -> [NgramCounts<'_>; ORDERS] {
    let tokens: Vec<&str> = caption.split_whitespace().collect();
    std::array::from_fn(|order| {
        let mut counts = BTreeMap::new();
        for gram in tokens.windows(order + 1) {
            *counts.entry(gram.to_vec()).or_insert(0) += 1;
        }
        counts
    })
}

/// A caption of an image beside those of people, all tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captioned {
    /// The judged caption.
    pub caption: String,
    /// The captions of people; at least one.
    pub references: Vec<String>,
}

/// The share of one image's caption in each score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Matches and lengths, for [`bleu`].
    pub bleu: BleuCounts,
    /// ROUGE-L, in [0, 1].
    pub rouge_l: f64,
    /// CIDEr-D, in [0, 10].
    pub cider: f64,
}

/// Judges every caption. CIDEr weighs n-grams by the number of images whose references hold them,
/// so its scores depend on the whole set.
#[must_use]
pub fn judge(captioned: &[Captioned]) -> Vec<Judged> {
    let cider = Cider::new(captioned.iter().map(|image| &image.references[..]));
    let each = captioned.par_iter().map(|image| Judged {
        bleu: BleuCounts::new(&image.caption, &image.references),
        rouge_l: rouge_l(&image.caption, &image.references),
        cider: cider.score(&image.caption, &image.references),
    });
    each.collect()
}

/// BLEU-1 to BLEU-4 of all captions together, ROUGE-L and CIDEr-D as means. Units are images. On
/// a draw BLEU is that of the images drawn; the weights of CIDEr stay those of the whole set.
#[must_use]
pub fn sample(judged: &[Judged]) -> Sample {
    let mut sample = Sample::new(judged.len());
    let mean = |of: &dyn Fn(&Judged) -> f64| {
        Ratio::of_cases(judged.iter().map(of).enumerate().collect::<Vec<_>>())
    };
    sample.ratios.push(mean(&|j| j.bleu.length as f64));
    sample
        .ratios
        .push(mean(&|j| j.bleu.reference_length as f64));
    for order in 0..ORDERS {
        sample.ratios.push(mean(&|j| j.bleu.matches[order] as f64));
        sample.ratios.push(mean(&|j| j.bleu.ngrams[order] as f64));
        sample.quantities.push(Quantity {
            name: format!("bleu_{}", order + 1),
            unit: Unit::Fraction,
            ratios: (0..sample.ratios.len()).collect(),
            combination: Combination::Bleu,
        });
    }
    sample.report("rouge_l", mean(&|j| j.rouge_l));
    sample.report("cider", mean(&|j| j.cider));
    if let Some(cider) = sample.quantities.last_mut() {
        cider.unit = Unit::Tenfold;
    }
    sample
}
