//! CIDEr-D: cosine of n-gram counts, rare n-grams weighing more.
//!
//! Reference: <https://arxiv.org/abs/1411.5726>, sections 4 and 6; as in the captioning challenge,
//! where the variant D goes by the plain name.

use std::collections::{BTreeMap, BTreeSet};

use super::{NgramCounts, ORDERS, ngrams};

/// Width of the punishment for another length.
const SIGMA: f64 = 6.0;

/// The weights of n-grams in a set of images.
#[derive(Clone, Debug)]
pub struct Cider<'a> {
    /// In the references of how many images an n-gram is.
    n_images_with: BTreeMap<Vec<&'a str>, usize>,
    log_images: f64,
}

/// An n-gram vector for each n.
struct Vectors<'a> {
    weights: [BTreeMap<Vec<&'a str>, f64>; ORDERS],
    norms: [f64; ORDERS],
    /// Number of pairs of tokens: what the official program takes for the length.
    length: f64,
}

impl<'a> Cider<'a> {
    /// Counts the n-grams of the tokenized references of every image.
    #[must_use]
    pub fn new(references: impl IntoIterator<Item = &'a [String]>) -> Self {
        let mut n_images_with: BTreeMap<Vec<&str>, usize> = BTreeMap::new();
        let mut n_images = 0;
        for image in references {
            n_images += 1;
            let grams = image.iter().flat_map(|text| ngrams(text)).flatten();
            let distinct: BTreeSet<_> = grams.map(|(gram, _)| gram).collect();
            for gram in distinct {
                *n_images_with.entry(gram).or_insert(0) += 1;
            }
        }
        Self {
            n_images_with,
            log_images: f64::from(n_images).ln(),
        }
    }

    /// The score of one caption: the mean over references and n of the clipped cosine, times
    /// `exp(−(difference in length)² / 2σ²)`, times ten. 0 without references.
    #[must_use]
    pub fn score(&self, caption: &str, references: &[String]) -> f64 {
        let own = self.vectors(caption);
        let of_reference = |reference: &String| own.similarity(&self.vectors(reference));
        let sum: f64 = references.iter().map(of_reference).sum();
        match references.len() {
            0 => 0.0,
            n => 10.0 * sum / n as f64,
        }
    }

    fn vectors<'b>(&self, text: &'b str) -> Vectors<'b> {
        let counts = ngrams(text);
        let length = counts[1].values().sum::<usize>() as f64;
        let weights = counts.map(|counts| self.weigh(counts));
        let squares = |of: &BTreeMap<_, f64>| of.values().map(|w| w * w).sum::<f64>();
        Vectors {
            norms: std::array::from_fn(|order| squares(&weights[order]).sqrt()),
            weights,
            length,
        }
    }

    /// Counts times the logarithm of images over images with the n-gram.
    fn weigh<'b>(&self, counts: NgramCounts<'b>) -> BTreeMap<Vec<&'b str>, f64> {
        let weigh = |(gram, count): (Vec<&'b str>, usize)| {
            let n_with = self.n_images_with.get(&gram[..]).copied().unwrap_or(0);
            let rarity = self.log_images - (n_with.max(1) as f64).ln();
            (gram, count as f64 * rarity)
        };
        counts.into_iter().map(weigh).collect()
    }
}

impl Vectors<'_> {
    /// The mean over n, in [0, 1] as far as no weight is negative.
    fn similarity(&self, reference: &Vectors) -> f64 {
        let difference = self.length - reference.length;
        let punishment = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
        let of_order = |order: usize| {
            let theirs = &reference.weights[order];
            let common = self.weights[order].iter().filter_map(|(gram, own)| {
                let other = theirs.get(&gram[..])?;
                Some(own.min(*other) * other)
            });
            let product: f64 = common.sum();
            let norms = self.norms[order] * reference.norms[order];
            punishment
                * if norms == 0.0 {
                    product
                } else {
                    product / norms
                }
        };
        (0..ORDERS).map(of_order).sum::<f64>() / ORDERS as f64
    }
}
