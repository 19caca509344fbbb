//! Retrieval by a ranking head, which reads image and text together: every pair is a pass, except for what of it depends on
//! the text or on the image alone.

use std::path::Path;
use std::sync::Arc;

use super::Runner;
use super::runner::by_length;
use crate::batch::{Images, Texts};
use crate::datasets::captions::CaptionSet;
use crate::models::{FusionEncoder, ReadText};
use crate::predictions::retrieval::ScoreFile;
use crate::text::Encoded;
use crate::{Error, Result};

/// Texts are read before they meet an image, as far as their family does so, and their states are kept for all
/// images. This memory holds 14,000 captions of the published FLM. Where a set has more, each image is
/// encoded once for every 14,000 captions, whose pairs take three thousand times as long.
const STATES_BYTES: usize = 1 << 30;

/// Pairs that a ranking head scores: of each image the best texts, and of each text the best
/// images, by the scores of another model.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The other model's scores, `n_images × n_texts`.
    scores: Vec<f32>,
    /// Whether a pair is scored.
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
    let n_texts = encoded.len();
    let n_pairs = match candidates {
        None => own.len() * n_texts,
        Some(candidates) => {
            let asked = |image: usize| &candidates.is_chosen[image * n_texts..][..n_texts];
            let asked = own.iter().flatten().flat_map(|&image| asked(image));
            asked.filter(|is_chosen| **is_chosen).count()
        }
    };
    runner.progress().start_items("pairs", n_pairs as u64);
    let found = score_images(runner, set, &encoded, &own, candidates);
    runner.progress().finish();
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
    own: &[Vec<usize>],
    candidates: Option<&Candidates>,
) -> Result<Vec<f32>> {
    let model = runner.model().fusion()?;
    let n_texts = encoded.len();
    let images: Vec<usize> = own.iter().flatten().copied().collect();
    let is_asked = |image: usize, text: usize| {
        candidates.is_none_or(|candidates| candidates.is_chosen[image * n_texts + text])
    };
    let mut left: Vec<usize> = by_length(encoded, runner.batch_size()).concat();
    left.retain(|&text| images.iter().any(|&image| is_asked(image, text)));
    let mut scores = vec![0.0; images.len() * n_texts];
    while !left.is_empty() {
        let read = read_texts(runner, encoded, &left)?;
        let texts: Vec<usize> = left.drain(..read.len()).collect();
        let pictures = Arc::clone(set);
        let pixels = runner.pictures(own.to_vec(), move |&image| pictures.picture(image));
        let rows = scores.chunks_exact_mut(n_texts).zip(&images);
        for (pixels, (row, &image)) in pixels.zip(rows) {
            let looked = model.look_at(&runner.pixels(pixels?, 1)?)?;
            let asked: Vec<usize> = (0..texts.len())
                .filter(|&at| is_asked(image, texts[at]))
                .collect();
            for batch in asked.chunks(runner.batch_size()) {
                let of_batch: Vec<&Encoded> = batch.iter().map(|&at| &encoded[texts[at]]).collect();
                let read: Vec<&ReadText> = batch.iter().map(|&at| &read[at]).collect();
                let found = model.rank_read(&runner.texts(&of_batch)?, &read, &looked)?;
                for (&at, score) in batch.iter().zip(runner.rows(&found)?) {
                    if score.is_nan() {
                        return Err(Error::ScoreNotANumber { row: image });
                    }
                    row[texts[at]] = score;
                }
            }
            runner.advance(asked.len())?;
        }
    }
    Ok(scores)
}

/// The first of these texts, as many as [`STATES_BYTES`] hold.
fn read_texts(runner: &Runner<'_>, encoded: &[Encoded], texts: &[usize]) -> Result<Vec<ReadText>> {
    let model = runner.model().fusion()?;
    let (mut read, mut n_bytes) = (Vec::new(), 0);
    for batch in texts.chunks(runner.batch_size()) {
        if n_bytes >= STATES_BYTES {
            break;
        }
        let texts: Vec<&Encoded> = batch.iter().map(|&text| &encoded[text]).collect();
        let found = model.read_text(&runner.texts(&texts)?)?;
        n_bytes += found.iter().map(ReadText::n_bytes).sum::<usize>();
        read.extend(found);
    }
    Ok(read)
}

/// Scores of every image with every text by the ranking head, `n_images × n_texts`, without gradients.
///
/// # Errors
/// As [`FusionEncoder::rank`].
pub fn pair_scores(model: &dyn FusionEncoder, images: &Images, texts: &Texts) -> Result<Vec<f32>> {
    let read = model.read_text(texts)?;
    let read: Vec<&ReadText> = read.iter().collect();
    let mut scores = Vec::new();
    for image in 0..images.pixels.dim(0)? {
        let looked = model.look_at(&images.narrow(image, 1)?)?;
        let found = model.rank_read(texts, &read, &looked)?;
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
