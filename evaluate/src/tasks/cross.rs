//! Retrieval by a ranking head, which reads image and text together: every pair is one pass.

use std::path::Path;
use std::sync::Arc;

use super::Runner;
use super::runner::by_length;
use crate::batch::{Images, Texts};
use crate::datasets::captions::CaptionSet;
use crate::models::FusionEncoder;
use crate::nn::Pass;
use crate::predictions::retrieval::ScoreFile;
use crate::text::Encoded;
use crate::{Error, Result};

/// Pairs that a ranking head is asked of: of each image the best texts, and of each text the best
/// images, by the scores of another model.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The other model's scores, `n_images × n_texts`.
    scores: Vec<f32>,
    /// Whether a pair is asked.
    is_chosen: Vec<bool>,
}

impl Candidates {
    /// The `n` best of each by the scores of a file.
    ///
    /// # Errors
    /// When the file cannot be read, and [`Error::LengthsDiffer`] when it is not of this split.
    pub fn open(n: usize, path: &Path, set: &CaptionSet) -> Result<Self> {
        let file = ScoreFile::open(path)?;
        let counts = [
            (
                "images of the scores and of the split",
                file.image_ids.len(),
                set.n_images(),
            ),
            (
                "texts of the scores and of the split",
                file.text_image_ids.len(),
                set.n_captions(),
            ),
        ];
        for (what, left, right) in counts {
            if left != right {
                return Err(Error::LengthsDiffer { what, left, right });
            }
        }
        Ok(Self::new(n, file.all_scores()?, set.n_captions()))
    }

    /// The `n` best of each by scores, `n_images × n_texts`.
    #[must_use]
    pub fn new(n: usize, scores: Vec<f32>, n_texts: usize) -> Self {
        let mut is_chosen = vec![false; scores.len()];
        let n_images = scores.len() / n_texts.max(1);
        let mut choose = |pairs: Vec<usize>| {
            let mut pairs = pairs;
            pairs.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            pairs
                .iter()
                .take(n)
                .for_each(|&pair| is_chosen[pair] = true);
        };
        for image in 0..n_images {
            choose((image * n_texts..(image + 1) * n_texts).collect());
        }
        for text in 0..n_texts {
            choose((0..n_images).map(|image| image * n_texts + text).collect());
        }
        Self { scores, is_chosen }
    }

    /// Puts pairs that were not asked behind all others, in the order of the other model's scores.
    fn complete(&self, found: &mut [f32]) {
        let asked = found
            .iter()
            .zip(&self.is_chosen)
            .filter(|(_, chosen)| **chosen);
        let least = asked.map(|(&score, _)| score).fold(f32::INFINITY, f32::min);
        let mut others: Vec<usize> = (0..found.len())
            .filter(|&pair| !self.is_chosen[pair])
            .collect();
        others.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]));
        // By ranks: whole numbers in f32 stay apart as far as the pairs of a matrix in memory reach.
        let floor = if least.is_finite() {
            least.floor()
        } else {
            0.0
        };
        let mut rank = 0.0_f32;
        for (place, &pair) in others.iter().enumerate() {
            if place == 0 || self.scores[others[place - 1]] > self.scores[pair] {
                rank += 1.0;
            }
            found[pair] = floor - rank;
        }
    }
}

/// Scores of every image with every text, or of the candidates, `n_images × n_texts`.
///
/// # Errors
/// When a picture cannot be read or decoded, a score is not a number, or the device fails.
pub(super) fn scores(
    runner: &Runner<'_>,
    set: &Arc<CaptionSet>,
    candidates: Option<&Candidates>,
) -> Result<Vec<f32>> {
    let n_images = set.n_images();
    let all: Vec<usize> = (0..n_images).collect();
    let batches: Vec<Vec<usize>> = all.iter().map(|&image| vec![image]).collect();
    let own = runner.own(batches);
    let texts = (0..n_images).flat_map(|image| set.captions(image).iter().map(String::as_str));
    let encoded = runner.encode_captions(texts)?;
    runner.progress().start_items("images", own.len() as u64);
    let found = score_images(runner, set, &encoded, own, candidates);
    runner.progress().finish();
    let n_texts = encoded.len();
    let rows = runner.gathered(found?, &vec![n_texts; n_images])?;
    let mut scores = rows.concat();
    if let Some(candidates) = candidates {
        candidates.complete(&mut scores);
    }
    Ok(scores)
}

fn score_images(
    runner: &Runner<'_>,
    set: &Arc<CaptionSet>,
    encoded: &[Encoded],
    own: Vec<Vec<usize>>,
    candidates: Option<&Candidates>,
) -> Result<Vec<f32>> {
    let model = runner.model().fusion()?;
    let n_texts = encoded.len();
    let everything = by_length(encoded, runner.batch_size());
    let pictures = Arc::clone(set);
    let pixels = runner.pictures(own.clone(), move |&image| pictures.picture(image));
    let mut scores = Vec::new();
    for (pixels, image) in pixels.zip(own.into_iter().flatten()) {
        let image_of = runner.pixels(pixels?, 1)?;
        let mut row = vec![0.0; n_texts];
        let batches = match candidates {
            None => everything.clone(),
            Some(candidates) => {
                let of_image = &candidates.is_chosen[image * n_texts..][..n_texts];
                let kept = |batch: &Vec<usize>| -> Vec<usize> {
                    batch
                        .iter()
                        .copied()
                        .filter(|&text| of_image[text])
                        .collect()
                };
                let kept: Vec<usize> = everything.iter().flat_map(kept).collect();
                let batches = kept.chunks(runner.batch_size());
                batches.map(<[usize]>::to_vec).collect()
            }
        };
        // Batches of one size are one call, for the image is looked at once in it.
        for batches in batches.chunk_by(|a, b| a.len() == b.len()) {
            let texts: Vec<Texts> = (batches.iter())
                .map(|batch| {
                    let texts: Vec<&Encoded> = batch.iter().map(|&text| &encoded[text]).collect();
                    runner.texts(&texts)
                })
                .collect::<Result<_>>()?;
            let texts: Vec<&Texts> = texts.iter().collect();
            let passes: Vec<Pass<'_>> = texts.iter().map(|_| Pass::new()).collect();
            // (n, batches), but batch by batch below.
            let found = model.rank(&texts, &image_of, &passes)?.t()?.contiguous()?;
            let found = runner.rows(&found)?;
            for (&text, score) in batches.iter().flatten().zip(found) {
                if score.is_nan() {
                    return Err(Error::ScoreNotANumber { row: image });
                }
                row[text] = score;
            }
        }
        scores.extend(row);
        runner.advance(1)?;
    }
    Ok(scores)
}

/// Scores of every image with every text by the ranking head, `n_images × n_texts`, without gradients.
///
/// # Errors
/// As [`FusionEncoder::rank`].
pub fn pair_scores(model: &dyn FusionEncoder, images: &Images, texts: &Texts) -> Result<Vec<f32>> {
    let mut scores = Vec::new();
    for image in 0..images.pixels.dim(0)? {
        let found = model.rank(&[texts], &images.narrow(image, 1)?, &[Pass::new()])?;
        let found = found.to_dtype(candle_core::DType::F32)?.flatten_all()?;
        scores.extend(found.to_vec1::<f32>()?);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_either_side_are_asked_and_others_come_behind() {
        // Two images, three texts. The best text of each image, the best image of each text.
        let candidates = Candidates::new(1, vec![0.9, 0.1, 0.3, 0.2, 0.8, 0.4], 3);
        assert_eq!(
            candidates.is_chosen,
            [true, false, false, false, true, true]
        );
        let mut found = vec![-2.5, 0.0, 0.0, 0.0, 4.0, 1.0];
        candidates.complete(&mut found);
        // 0.3, 0.2, 0.1 in that order, below the floor of -2.5.
        assert_eq!(found, [-2.5, -6.0, -4.0, -5.0, 4.0, 1.0]);
    }
}
