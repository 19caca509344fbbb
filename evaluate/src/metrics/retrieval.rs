//! Retrieval: which texts belong to an image, which image to a text?
//!
//! Text retrieval (TR) asks with an image, image retrieval (IR) with a text. R@k is the share of
//! queries with a hit among the k best, RSUM the sum of six of them in percent.
//!
//! No row is ever sorted: the rank of the best right item is one more than the number of items
//! that score higher. Scores are read in blocks of rows, so memory does not grow with the matrix.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::sample::{Combination, Quantity, Ratio, Sample, Unit};
use crate::{Error, Result, ScoresFault};

/// The k of R@k.
pub const RANKS: [usize; 3] = [1, 5, 10];

/// Blocks of rows per thread: enough for threads to finish together.
const BLOCKS_PER_THREAD: usize = 4;

/// A score: `f32` or `f64`.
pub trait Score: Copy + Default + PartialOrd + Send + Sync {}
impl Score for f32 {}
impl Score for f64 {}

/// A matrix of scores, images × texts, larger is better; in memory or in a file.
pub trait ScoreMatrix: Sync {
    /// Type of the scores.
    type Score: Score;

    /// Number of images (rows) and of texts (columns).
    fn shape(&self) -> (usize, usize);

    /// Reads the scores of `row` from `column` on until `out` is full.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, row: usize, column: usize, out: &mut [Self::Score]) -> Result<()>;

    /// The number of rows that a reader fetches best at a time, from a multiple of it on.
    fn rows_at_once(&self) -> usize {
        1
    }

    /// Reads whole rows, one after the other, until `out` is full.
    ///
    /// # Errors
    /// As [`ScoreMatrix::read`].
    fn read_rows(&self, first: usize, out: &mut [Self::Score]) -> Result<()> {
        let (_, n_columns) = self.shape();
        for (row, out) in out.chunks_mut(n_columns).enumerate() {
            self.read(first + row, 0, out)?;
        }
        Ok(())
    }
}

impl<T: Score> ScoreMatrix for ArrayView2<'_, T> {
    type Score = T;

    fn shape(&self) -> (usize, usize) {
        self.dim()
    }

    fn read(&self, row: usize, column: usize, out: &mut [T]) -> Result<()> {
        for (to, &from) in out.iter_mut().zip(self.row(row).iter().skip(column)) {
            *to = from;
        }
        Ok(())
    }
}

/// The effect of equal scores on a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ties {
    /// Mean over all orders of equal scores: a hit may count in part. Neither the order in the
    /// file nor a collapsed model, whose scores are all equal, gains anything.
    #[default]
    Expected,
    /// Right items come after equal wrong ones.
    Pessimistic,
    /// Right items come before equal wrong ones.
    Optimistic,
    /// Equal scores keep the order of the file, as in a stable sort.
    First,
}

impl Ties {
    /// Every way, in the order of the variants.
    pub const ALL: [Self; 4] = [
        Self::Expected,
        Self::Pessimistic,
        Self::Optimistic,
        Self::First,
    ];
}

impl fmt::Display for Ties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expected => "expected",
            Self::Pessimistic => "pessimistic",
            Self::Optimistic => "optimistic",
            Self::First => "first",
        })
    }
}

impl FromStr for Ties {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|ties| ties.to_string() == text);
        found.ok_or_else(|| "one of expected, pessimistic, optimistic, first".into())
    }
}

/// The standing of a query's best right item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Items that score higher; all are wrong.
    pub n_higher: u32,
    /// Right items with the same score, itself included.
    pub n_right_tied: u32,
    /// Wrong items with the same score.
    pub n_wrong_tied: u32,
    /// Those of them that come before the first right one in the order of the file.
    pub n_wrong_tied_before: u32,
}

impl Standing {
    /// The rank of the best right item, from 1; under [`Ties::Expected`] its mean over all orders.
    #[must_use]
    pub fn rank(&self, ties: Ties) -> f64 {
        let wrong = match ties {
            Ties::Optimistic => 0.0,
            Ties::Pessimistic => f64::from(self.n_wrong_tied),
            Ties::First => f64::from(self.n_wrong_tied_before),
            Ties::Expected => f64::from(self.n_wrong_tied) / (f64::from(self.n_right_tied) + 1.0),
        };
        1.0 + f64::from(self.n_higher) + wrong
    }

    /// Whether a right item is among the `k` best: 1 or 0, or under [`Ties::Expected`] how likely.
    #[must_use]
    pub fn hit(&self, k: usize, ties: Ties) -> f64 {
        if ties != Ties::Expected {
            return f64::from(self.rank(ties) <= k as f64);
        }
        // The chance that the first `n_places` of the tied items, in random order, are all wrong.
        let n_places = k.saturating_sub(self.n_higher as usize);
        let (n_wrong, n_right) = (self.n_wrong_tied as usize, self.n_right_tied as usize);
        if n_places > n_wrong {
            return 1.0;
        }
        let miss: f64 = (0..n_places)
            .map(|place| (n_wrong - place) as f64 / (n_wrong + n_right - place) as f64)
            .product();
        1.0 - miss
    }
}

/// The image of each text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captions {
    /// Row of the image of each text.
    row_of_text: Vec<u32>,
    /// Columns of the texts of each image, ascending, one image after the other.
    columns: Vec<u32>,
    /// The first column of each image, and the end of the last.
    starts: Vec<usize>,
}

impl Captions {
    /// Matches the ids of the rows with those of the texts.
    ///
    /// # Errors
    /// [`ScoresFault::EmptyScores`], [`ScoresFault::DuplicateImage`], [`ScoresFault::TextWithoutImage`],
    /// [`ScoresFault::ImageWithoutText`].
    pub fn new(image_ids: &[i64], text_image_ids: &[i64]) -> Result<Self> {
        if image_ids.is_empty() || text_image_ids.is_empty() {
            return Err(ScoresFault::EmptyScores {
                n_images: image_ids.len(),
                n_texts: text_image_ids.len(),
            }
            .into());
        }
        let mut row_of_id: HashMap<i64, usize> = HashMap::with_capacity(image_ids.len());
        for (second, &id) in image_ids.iter().enumerate() {
            if let Some(first) = row_of_id.insert(id, second) {
                return Err(ScoresFault::DuplicateImage { id, first, second }.into());
            }
        }
        let mut row_of_text = Vec::with_capacity(text_image_ids.len());
        let mut starts = vec![0; image_ids.len() + 1];
        for (column, &id) in text_image_ids.iter().enumerate() {
            let &row = row_of_id
                .get(&id)
                .ok_or(ScoresFault::TextWithoutImage { id, column })?;
            row_of_text.push(row as u32);
            starts[row + 1] += 1;
        }
        if let Some(row) = (0..image_ids.len()).find(|&row| starts[row + 1] == 0) {
            let id = image_ids[row];
            return Err(ScoresFault::ImageWithoutText { id, row }.into());
        }
        for row in 0..image_ids.len() {
            starts[row + 1] += starts[row];
        }
        let mut columns: Vec<u32> = (0..row_of_text.len() as u32).collect();
        columns.sort_by_key(|&column| row_of_text[column as usize]);
        Ok(Self {
            row_of_text,
            columns,
            starts,
        })
    }

    /// Number of images and of texts.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.starts.len() - 1, self.row_of_text.len())
    }

    /// Columns of the texts of an image, ascending; at least one.
    pub(super) fn of_image(&self, row: usize) -> &[u32] {
        &self.columns[self.starts[row]..self.starts[row + 1]]
    }

    /// The row of the image of a text.
    pub(super) fn row_of(&self, text: usize) -> u32 {
        self.row_of_text[text]
    }
}

/// The standing of every query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standings {
    /// For each image, that of its best text.
    pub of_images: Vec<Standing>,
    /// For each text, that of its image.
    pub of_texts: Vec<Standing>,
}

/// Ranks all images for every text and all texts for every image.
///
/// # Errors
/// [`Error::LengthsDiffer`] when the matrix has not the shape of `captions`,
/// [`Error::ScoreNotANumber`], and what reading the matrix returns.
pub fn standings<M: ScoreMatrix>(scores: &M, captions: &Captions) -> Result<Standings> {
    let (n_images, n_texts) = captions.shape();
    let (n_rows, n_columns) = scores.shape();
    for (what, left, right) in [
        ("rows and image ids", n_rows, n_images),
        ("columns and text ids", n_columns, n_texts),
    ] {
        if left != right {
            return Err(Error::LengthsDiffer { what, left, right });
        }
    }
    let right_scores = right_scores(scores, captions)?;
    let block = n_rows
        .div_ceil(BLOCKS_PER_THREAD * rayon::current_num_threads())
        .next_multiple_of(scores.rows_at_once());
    let blocks: Vec<usize> = (0..n_rows).step_by(block).collect();
    let (of_images, counts) = blocks
        .into_par_iter()
        .map(|first| {
            let rows = first..(first + block).min(n_rows);
            rank_rows(scores, captions, &right_scores, rows)
        })
        .try_reduce(
            || (Vec::new(), ColumnCounts::new(0)),
            |(mut rows, counts), (more_rows, more_counts)| {
                rows.extend(more_rows);
                Ok((rows, counts.merged(more_counts)))
            },
        )?;
    Ok(Standings {
        of_images,
        of_texts: counts.standings(),
    })
}

/// The standings of a block of images, and what their rows add to those of the texts.
fn rank_rows<M: ScoreMatrix>(
    scores: &M,
    captions: &Captions,
    right_scores: &[M::Score],
    rows: Range<usize>,
) -> Result<(Vec<Standing>, ColumnCounts)> {
    let n_columns = right_scores.len();
    let mut counts = ColumnCounts::new(n_columns);
    let mut block = vec![M::Score::default(); scores.rows_at_once() * n_columns];
    let mut standings = Vec::with_capacity(rows.len());
    for first in rows.clone().step_by(scores.rows_at_once()) {
        let n = scores.rows_at_once().min(rows.end - first);
        let block = &mut block[..n * n_columns];
        scores.read_rows(first, block)?;
        for (row, row_scores) in (first..).zip(block.chunks_exact(n_columns)) {
            let columns = captions.of_image(row);
            standings.push(standing_of_image(row_scores, columns, row)?);
            counts.add(row as u32, row_scores, right_scores, &captions.row_of_text);
        }
    }
    Ok((standings, counts))
}

/// The score of each text with its own image. Reads of each row only what lies between the first
/// and the last text of the image.
fn right_scores<M: ScoreMatrix>(scores: &M, captions: &Captions) -> Result<Vec<M::Score>> {
    let (n_images, n_texts) = captions.shape();
    let mut right = vec![M::Score::default(); n_texts];
    let mut span = Vec::new();
    for row in 0..n_images {
        let columns = captions.of_image(row);
        let first = columns[0] as usize;
        let last = columns[columns.len() - 1] as usize;
        span.resize(last - first + 1, M::Score::default());
        scores.read(row, first, &mut span)?;
        for &column in columns {
            right[column as usize] = span[column as usize - first];
        }
    }
    Ok(right)
}

fn standing_of_image<T: Score>(scores: &[T], columns: &[u32], row: usize) -> Result<Standing> {
    let mut best = scores[columns[0] as usize];
    for &column in columns {
        if scores[column as usize] > best {
            best = scores[column as usize];
        }
    }
    let (mut n_higher, mut n_tied, mut n_comparable) = (0u32, 0u32, 0u32);
    for &score in scores {
        n_higher += u32::from(score > best);
        n_tied += u32::from(score == best);
        // Only a NaN differs from itself.
        #[allow(
            clippy::eq_op,
            reason = "the test for NaN that vectorizes for any float"
        )]
        let is_number = score == score;
        n_comparable += u32::from(is_number);
    }
    if n_comparable as usize != scores.len() {
        return Err(Error::ScoreNotANumber { row });
    }
    let mut right_tied = columns
        .iter()
        .filter(|&&column| scores[column as usize] == best);
    let first_right = right_tied
        .clone()
        .next()
        .map_or(0, |&column| column as usize);
    let n_right_tied = right_tied.by_ref().count() as u32;
    let before = scores[..first_right].iter();
    Ok(Standing {
        n_higher,
        n_right_tied,
        n_wrong_tied: n_tied - n_right_tied,
        n_wrong_tied_before: before.filter(|&&score| score == best).count() as u32,
    })
}

/// Over the rows of a block, for every text: images with a score above its own image's, equal to
/// it, and equal in an earlier row than its own.
struct ColumnCounts {
    higher: Vec<u32>,
    tied: Vec<u32>,
    tied_before: Vec<u32>,
}

impl ColumnCounts {
    fn new(n_texts: usize) -> Self {
        Self {
            higher: vec![0; n_texts],
            tied: vec![0; n_texts],
            tied_before: vec![0; n_texts],
        }
    }

    fn add<T: Score>(&mut self, row: u32, scores: &[T], right: &[T], row_of_text: &[u32]) {
        let counts = self.higher.iter_mut().zip(&mut self.tied);
        for (((higher, tied), &score), &right) in counts.zip(scores).zip(right) {
            *higher += u32::from(score > right);
            *tied += u32::from(score == right);
        }
        let texts = scores.iter().zip(right).zip(row_of_text);
        for (before, ((&score, &right), &own)) in self.tied_before.iter_mut().zip(texts) {
            *before += u32::from(score == right) & u32::from(row < own);
        }
    }

    fn merged(mut self, other: Self) -> Self {
        if self.higher.is_empty() {
            return other;
        }
        for (sum, more) in [
            (&mut self.higher, &other.higher),
            (&mut self.tied, &other.tied),
            (&mut self.tied_before, &other.tied_before),
        ] {
            for (sum, more) in sum.iter_mut().zip(more) {
                *sum += more;
            }
        }
        self
    }

    fn standings(&self) -> Vec<Standing> {
        let tied = self.tied.iter().zip(&self.tied_before);
        self.higher
            .iter()
            .zip(tied)
            .map(|(&n_higher, (&tied, &before))| Standing {
                n_higher,
                n_right_tied: 1,
                n_wrong_tied: tied - 1,
                n_wrong_tied_before: before,
            })
            .collect()
    }
}

/// R@1, R@5 and R@10 both ways and RSUM. Units are images, each with its captions.
#[must_use]
pub fn sample(standings: &Standings, captions: &Captions, ties: Ties) -> Sample {
    let (n_images, _) = captions.shape();
    let mut sample = Sample::new(n_images);
    for k in RANKS {
        let images = standings.of_images.iter().enumerate();
        let cases = images.map(|(row, standing)| (row, standing.hit(k, ties)));
        sample.report(format!("tr_r{k}"), Ratio::of_cases(cases));
    }
    for k in RANKS {
        let texts = (0..n_images).flat_map(|row| {
            let columns = captions.of_image(row).iter();
            columns.map(move |&column| (row, &standings.of_texts[column as usize]))
        });
        let cases = texts.map(|(row, standing)| (row, standing.hit(k, ties)));
        sample.report(format!("ir_r{k}"), Ratio::of_cases(cases));
    }
    sample.quantities.push(Quantity {
        name: "rsum".into(),
        unit: Unit::PercentSum,
        ratios: (0..sample.ratios.len()).collect(),
        combination: Combination::Sum,
    });
    sample
}

/// The middle rank and the mean rank of a direction. `None` without queries.
#[must_use]
pub fn median_and_mean(standings: &[Standing], ties: Ties) -> Option<(f64, f64)> {
    let mut ranks: Vec<f64> = standings.iter().map(|s| s.rank(ties)).collect();
    ranks.sort_by(f64::total_cmp);
    let middle = ranks.len() / 2;
    let upper = *ranks.get(middle)?;
    let median = match ranks.len() % 2 {
        0 => f64::midpoint(ranks[middle - 1], upper),
        _ => upper,
    };
    Some((median, ranks.iter().sum::<f64>() / ranks.len() as f64))
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    #[test]
    fn a_matrix_by_eye() {
        // Two images; texts 0 and 2 belong to image 7, text 1 to image 3.
        let scores = arr2(&[[0.1f32, 0.9, 0.5], [0.2, 0.4, 0.5]]);
        let captions = Captions::new(&[7, 3], &[7, 3, 7]).expect("ids match");
        let found = standings(&scores.view(), &captions).expect("no NaN");
        let ranks = |all: &[Standing]| -> Vec<f64> {
            all.iter().map(|s| s.rank(Ties::Pessimistic)).collect()
        };
        assert_eq!(ranks(&found.of_images), [2.0, 2.0]);
        // Text 2 scores 0.5 with both images.
        assert_eq!(ranks(&found.of_texts), [2.0, 2.0, 2.0]);
        assert_eq!(found.of_texts[2].rank(Ties::First), 1.0);
        assert_eq!(found.of_texts[2].hit(1, Ties::Expected), 0.5);
        let judged = sample(&found, &captions, Ties::Optimistic);
        let value = |name: &str| {
            let quantity = judged.quantities.iter().find(|q| q.name == name);
            quantity.and_then(|q| judged.value(q))
        };
        assert_eq!(value("tr_r1"), Some(0.0));
        assert_eq!(value("ir_r1"), Some(1.0 / 3.0));
        let rsum = value("rsum").expect("there are queries");
        assert!((rsum - 433.0 - 1.0 / 3.0).abs() < 1e-9, "{rsum}");
    }

    #[test]
    fn what_is_not_a_number_has_no_rank() {
        let scores = arr2(&[[1.0f64, f64::NAN], [0.0, 1.0]]);
        let captions = Captions::new(&[0, 1], &[0, 1]).expect("ids match");
        let error = standings(&scores.view(), &captions).expect_err("refused");
        assert_eq!(error.to_string(), "a score of row 0 is not a number");
    }

    #[test]
    fn ids_that_do_not_match_are_named() {
        let said = |images: &[i64], texts: &[i64]| {
            Captions::new(images, texts)
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(said(&[1, 1], &[1]), "rows 0 and 1 are both of image 1");
        assert_eq!(
            said(&[1], &[1, 5]),
            "text 1 belongs to image 5, which has no row"
        );
        assert_eq!(said(&[1, 2], &[1]), "image 2 (row 1) has no text");
        assert!(said(&[], &[]).contains("empty"));
    }
}
