//! Re-ranking: the best of a dual encoder, ranked once more by a model that reads image and text together.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::retrieval::{Captions, ScoreMatrix, Standing, Standings};
use crate::{Error, Result, ShortlistFault};

/// The order of items that were not scored again. They are behind all that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// In the order of the dual encoder.
    #[default]
    Similarity,
    /// All alike, as published: each has the score -100, and how equal scores count decides.
    Tied,
}

impl Rest {
    /// Every way, in the order of the variants.
    pub const ALL: [Self; 2] = [Self::Similarity, Self::Tied];
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Similarity => "similarity",
            Self::Tied => "tied",
        })
    }
}

impl FromStr for Rest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rest| rest.to_string() == text);
        found.ok_or_else(|| "one of similarity, tied".into())
    }
}

/// The best items of each query by a dual encoder: texts of each image, images of each text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortlist {
    /// Items of a query.
    k: usize,
    /// Columns of the texts of each image, `n_images × k`, the best first.
    of_images: Vec<u32>,
    /// Rows of the images of each text, `n_texts × k`, the best first.
    of_texts: Vec<u32>,
}

impl Shortlist {
    /// The `k` best of each query. Of equal scores the earlier item comes first.
    ///
    /// # Errors
    /// [`ShortlistFault::TooLong`] when there are fewer images or texts than `k`,
    /// [`Error::ScoreNotANumber`], and what reading the matrix returns.
    pub fn new(k: usize, scores: &impl ScoreMatrix<Score = f32>) -> Result<Self> {
        let (n_images, n_texts) = scores.shape();
        check_length(k, n_images, n_texts)?;
        let mut of_images = Vec::with_capacity(n_images * k);
        let mut of_texts: Vec<Best> = vec![Best::new(k); n_texts];
        let n_at_once = scores.rows_at_once();
        let mut block = vec![0.0; n_at_once * n_texts];
        for first in (0..n_images).step_by(n_at_once) {
            let block = &mut block[..n_at_once.min(n_images - first) * n_texts];
            scores.read_rows(first, block)?;
            for (row, scores) in (first..).zip(block.chunks_exact(n_texts)) {
                let mut of_image = Best::new(k);
                for (column, (&score, of_text)) in scores.iter().zip(&mut of_texts).enumerate() {
                    if score.is_nan() {
                        return Err(Error::ScoreNotANumber { row });
                    }
                    of_image.offer(score, column as u32);
                    of_text.offer(score, row as u32);
                }
                of_images.extend(of_image.items());
            }
        }
        Ok(Self {
            k,
            of_images,
            of_texts: of_texts.iter().flat_map(Best::items).collect(),
        })
    }

    /// Lists that were chosen before: columns of the texts of each image and rows of the images of each text.
    ///
    /// # Errors
    /// [`ShortlistFault::TooLong`] when there are fewer images or texts than `k`, [`Error::LengthsDiffer`] when a list
    /// is of another length, [`ShortlistFault::Twice`].
    pub fn given(
        k: usize,
        of_images: Vec<u32>,
        of_texts: Vec<u32>,
        [n_images, n_texts]: [usize; 2],
    ) -> Result<Self> {
        check_length(k, n_images, n_texts)?;
        for (what, list, n) in [
            ("image", &of_images, n_images),
            ("text", &of_texts, n_texts),
        ] {
            if list.len() != n * k {
                return Err(Error::LengthsDiffer {
                    what: "items of shortlists",
                    left: list.len(),
                    right: n * k,
                });
            }
            let mut known = HashSet::new();
            for (query, items) in list.chunks_exact(k).enumerate() {
                known.clear();
                if let Some(&item) = items.iter().find(|&&item| !known.insert(item)) {
                    return Err(ShortlistFault::Twice { what, query, item }.into());
                }
            }
        }
        Ok(Self {
            k,
            of_images,
            of_texts,
        })
    }

    /// Items of a query.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the texts of each image, `n_images × k`, the best first.
    #[must_use]
    pub fn of_images(&self) -> &[u32] {
        &self.of_images
    }

    /// Rows of the images of each text, `n_texts × k`, the best first.
    #[must_use]
    pub fn of_texts(&self) -> &[u32] {
        &self.of_texts
    }
}

/// Refuses lists of no items, or of more than there are.
fn check_length(k: usize, n_images: usize, n_texts: usize) -> Result<()> {
    if k == 0 || k > n_images || k > n_texts {
        return Err(ShortlistFault::TooLong {
            k,
            n_images,
            n_texts,
        }
        .into());
    }
    Ok(())
}

/// The best items that were offered, ordered. Items come in the order of their numbers.
#[derive(Clone, Debug)]
struct Best {
    k: usize,
    items: Vec<(f32, u32)>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self {
            k,
            items: Vec::with_capacity(k),
        }
    }

    fn offer(&mut self, score: f32, item: u32) {
        if self.items.len() == self.k {
            if self.items.last().is_some_and(|&(least, _)| score <= least) {
                return;
            }
            self.items.pop();
        }
        let place = self.items.partition_point(|&(known, _)| known >= score);
        self.items.insert(place, (score, item));
    }

    fn items(&self) -> impl Iterator<Item = u32> + '_ {
        self.items.iter().map(|&(_, item)| item)
    }
}

/// A shortlist whose pairs have scores of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Reranked {
    shortlist: Shortlist,
    /// Scores of the texts of each image, as [`Shortlist::of_images`].
    of_images: Vec<f32>,
    /// Scores of the images of each text, as [`Shortlist::of_texts`].
    of_texts: Vec<f32>,
    /// The order of the others.
    rest: Rest,
}

impl Reranked {
    /// Scores of the pairs of a shortlist, in its order.
    ///
    /// # Errors
    /// [`Error::LengthsDiffer`] when there is not a score for each pair, [`Error::ScoreNotANumber`].
    pub fn new(
        shortlist: Shortlist,
        of_images: Vec<f32>,
        of_texts: Vec<f32>,
        rest: Rest,
    ) -> Result<Self> {
        for (scores, pairs) in [
            (&of_images, &shortlist.of_images),
            (&of_texts, &shortlist.of_texts),
        ] {
            if scores.len() != pairs.len() {
                return Err(Error::LengthsDiffer {
                    what: "scores and pairs of a shortlist",
                    left: scores.len(),
                    right: pairs.len(),
                });
            }
            if let Some(place) = scores.iter().position(|score| score.is_nan()) {
                return Err(Error::ScoreNotANumber {
                    row: place / shortlist.k,
                });
            }
        }
        Ok(Self {
            shortlist,
            of_images,
            of_texts,
            rest,
        })
    }

    /// The pairs.
    #[must_use]
    pub fn shortlist(&self) -> &Shortlist {
        &self.shortlist
    }

    /// Scores of the texts of each image, `n_images × k`, as [`Shortlist::of_images`].
    #[must_use]
    pub fn of_images(&self) -> &[f32] {
        &self.of_images
    }

    /// Scores of the images of each text, `n_texts × k`, as [`Shortlist::of_texts`].
    #[must_use]
    pub fn of_texts(&self) -> &[f32] {
        &self.of_texts
    }

    /// The order of the others.
    #[must_use]
    pub fn rest(&self) -> Rest {
        self.rest
    }

    /// Texts of an image with their scores, the best first.
    #[must_use]
    pub fn texts_of(&self, image: usize) -> Vec<(u32, f32)> {
        let k = self.shortlist.k;
        let items = self.shortlist.of_images[image * k..][..k].iter();
        let scores = self.of_images[image * k..][..k].iter();
        let mut texts: Vec<(u32, f32)> = items.copied().zip(scores.copied()).collect();
        texts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        texts
    }

    /// The standing of the best right item of each query, from its standing by the dual encoder (`dual`).
    ///
    /// A query whose shortlist has a right item stands where its best one stands in the shortlist. Any other query has
    /// the whole shortlist before it: the right item was none of the `k` best, so it keeps its place behind them.
    #[must_use]
    pub fn standings(&self, dual: &Standings, captions: &Captions) -> Standings {
        let k = self.shortlist.k;
        let (n_images, n_texts) = captions.shape();
        let query = |items: &[u32], scores: &[f32], right: &[u32], n: usize, before: &Standing| {
            standing(items, scores, right, self.rest, n, before)
        };
        let of_images = dual.of_images.iter().enumerate().map(|(image, before)| {
            let at = image * k;
            let (items, scores) = (&self.shortlist.of_images[at..], &self.of_images[at..]);
            let right = captions.of_image(image);
            query(&items[..k], &scores[..k], right, n_texts, before)
        });
        let of_texts = dual.of_texts.iter().enumerate().map(|(text, before)| {
            let at = text * k;
            let (items, scores) = (&self.shortlist.of_texts[at..], &self.of_texts[at..]);
            let right = [captions.row_of(text)];
            query(&items[..k], &scores[..k], &right, n_images, before)
        });
        Standings {
            of_images: of_images.collect(),
            of_texts: of_texts.collect(),
        }
    }
}

/// The standing of the best of the `right` items (ascending) of a query among `n` items.
fn standing(
    items: &[u32],
    scores: &[f32],
    right: &[u32],
    rest: Rest,
    n: usize,
    dual: &Standing,
) -> Standing {
    let k = items.len();
    let is_right = |item: u32| right.binary_search(&item).is_ok();
    let pairs = || items.iter().copied().zip(scores.iter().copied());
    let found = pairs().filter(|&(item, _)| is_right(item));
    let Some(best) = found.map(|(_, score)| score).reduce(f32::max) else {
        return match rest {
            Rest::Similarity => behind(k, dual),
            Rest::Tied => {
                let first = right.first().copied().unwrap_or_default();
                let before = items.iter().filter(|&&item| item < first).count();
                let wrong = (n - k - right.len()) as u32;
                Standing {
                    n_higher: k as u32,
                    n_right_tied: right.len() as u32,
                    n_wrong_tied: wrong,
                    n_wrong_tied_before: first - before as u32,
                }
            }
        };
    };
    let count = |which: &dyn Fn(u32, f32) -> bool| {
        pairs().filter(|&(item, score)| which(item, score)).count() as u32
    };
    let first = pairs().filter(|&(item, score)| is_right(item) && score == best);
    let first = first.map(|(item, _)| item).min().unwrap_or_default();
    Standing {
        n_higher: count(&|_, score| score > best),
        n_right_tied: count(&|item, score| is_right(item) && score == best),
        n_wrong_tied: count(&|item, score| !is_right(item) && score == best),
        n_wrong_tied_before: count(&|item, score| !is_right(item) && score == best && item < first),
    }
}

/// The place of an item that is not among the `k` best. Where its score equals that of the last of them, those of equal
/// score that are among them are no longer its equals.
fn behind(k: usize, dual: &Standing) -> Standing {
    let taken = (k as u32).saturating_sub(dual.n_higher);
    Standing {
        n_higher: dual.n_higher.max(k as u32),
        n_right_tied: dual.n_right_tied,
        n_wrong_tied: dual.n_wrong_tied.saturating_sub(taken),
        n_wrong_tied_before: dual.n_wrong_tied_before.saturating_sub(taken),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, arr2};

    use super::*;
    use crate::metrics::retrieval::{Ties, standings};

    fn ranks(of: &[Standing]) -> Vec<f64> {
        let ranks = of.iter().map(|standing| standing.rank(Ties::Pessimistic));
        ranks.collect()
    }

    #[test]
    fn a_shortlist_has_the_best_of_each_query_and_of_equals_the_earlier() {
        let scores = arr2(&[[0.9_f32, 0.1, 0.9], [0.2, 0.8, 0.4]]);
        let found = Shortlist::new(2, &scores.view()).expect("two of each");
        assert_eq!(found.of_images(), [0, 2, 1, 2]);
        assert_eq!(found.of_texts(), [0, 1, 1, 0, 0, 1]);
        let error = Shortlist::new(3, &scores.view()).expect_err("two images");
        assert!(error.to_string().contains("2 images"), "{error}");
        assert!(Shortlist::new(0, &scores.view()).is_err());
    }

    #[test]
    fn a_right_item_stands_where_its_new_score_puts_it_or_keeps_its_place_behind_the_shortlist() {
        // Three images with one text each; image 0 finds its text third.
        let scores = arr2(&[[0.1_f32, 0.9, 0.5], [0.2, 0.8, 0.4], [0.3, 0.1, 0.7]]);
        let captions = Captions::new(&[0, 1, 2], &[0, 1, 2]).expect("captions");
        let dual = standings(&scores.view(), &captions).expect("ranks");
        let list = Shortlist::new(2, &scores.view()).expect("a shortlist");
        assert_eq!(list.of_images(), [1, 2, 1, 2, 2, 0]);
        // The second of each image's texts is the better one now; of the texts' images as well.
        let new = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let new = Reranked::new(list, new.to_vec(), new.to_vec(), Rest::Similarity);
        let found = new.expect("scores").standings(&dual, &captions);
        assert_eq!(ranks(&found.of_images), [3.0, 2.0, 2.0]);
        // Texts 0 and 2 are of images that lead their lists no more: [2, 1], [0, 1], [2, 0].
        assert_eq!(ranks(&found.of_texts), [3.0, 1.0, 2.0]);
    }

    /// The ranks in the matrix that a published program sorts.
    #[test]
    fn ranks_are_those_of_the_whole_matrix_with_the_rest_behind() {
        let (n_images, per_image, k) = (7, 3, 4);
        let n_texts = n_images * per_image;
        let mut seed = 1_u32;
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few values, so that many are equal.
            (seed >> 28) as f32
        };
        let scores = Array2::from_shape_fn((n_images, n_texts), |_| draw());
        let new = Array2::from_shape_fn((n_images, n_texts), |_| draw());
        let ids: Vec<i64> = (0..n_images as i64).collect();
        let of_texts: Vec<i64> = (0..n_texts).map(|text| (text / per_image) as i64).collect();
        let captions = Captions::new(&ids, &of_texts).expect("captions");
        let dual = standings(&scores.view(), &captions).expect("ranks");
        let list = Shortlist::new(k, &scores.view()).expect("a shortlist");
        let taken = |list: &[u32], query: usize, item: usize| {
            list[query * k..][..k].contains(&(item as u32))
        };
        for rest in Rest::ALL {
            let behind = |score: f32| match rest {
                Rest::Similarity => score - 100.0,
                Rest::Tied => -100.0,
            };
            let whole = |list: &[u32], of_image: bool| {
                Array2::from_shape_fn((n_images, n_texts), |(image, text)| {
                    let (query, item) = if of_image {
                        (image, text)
                    } else {
                        (text, image)
                    };
                    match taken(list, query, item) {
                        true => new[(image, text)],
                        false => behind(scores[(image, text)]),
                    }
                })
            };
            let scored = |list: &[u32], of_image: bool| -> Vec<f32> {
                let pairs = list.iter().enumerate();
                let pairs = pairs.map(|(at, &item)| match of_image {
                    true => new[(at / k, item as usize)],
                    false => new[(item as usize, at / k)],
                });
                pairs.collect()
            };
            let [images, texts] = [(list.of_images(), true), (list.of_texts(), false)];
            let found = Reranked::new(
                list.clone(),
                scored(images.0, true),
                scored(texts.0, false),
                rest,
            );
            let found = found.expect("scores").standings(&dual, &captions);
            let expected = standings(&whole(images.0, true).view(), &captions).expect("ranks");
            assert_eq!(found.of_images, expected.of_images, "{rest}");
            let expected = standings(&whole(texts.0, false).view(), &captions).expect("ranks");
            assert_eq!(found.of_texts, expected.of_texts, "{rest}");
        }
    }
}
