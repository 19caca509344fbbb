//! Writing what a model retrieved: scores of every image with every text, and ranks.

use std::collections::BTreeMap;
use std::path::Path;

use bytemuck::Pod;
use merge::io::{WriteOptions, Writer};
use merge::{DType, TensorInfo};
use ndarray::ArrayView2;

use super::retrieval::{
    IMAGE_ID, IMAGE_TOP, IMAGE_TOP_SCORE, REST, SCORES, TEXT_IMAGE_ID, TEXT_TOP, TEXT_TOP_SCORE,
};
use crate::metrics::reranking::Reranked;
use crate::metrics::retrieval::ScoreMatrix;
use crate::tasks::retrieval::Features;
use crate::{Error, Result};

/// The rank of the best text of each image.
pub const IMAGE_RANK: &str = "image_rank";
/// The rank of the image of each text.
pub const TEXT_RANK: &str = "text_rank";

/// The source of ranks.
#[derive(Clone, Debug, PartialEq)]
pub enum Scores {
    /// Features of images and texts, whose products are the scores: computed as they are written.
    Features(Features),
    /// The scores themselves, `n_images × n_texts`.
    Pairs(Vec<f32>),
    /// Features whose best were ranked once more.
    Reranked(Features, Reranked),
}

/// Scores and ranks of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Retrieved {
    /// The source of ranks.
    pub scores: Scores,
    /// The id of each image in the data set.
    pub image_names: Vec<String>,
    /// The image of each text, from 0.
    pub image_of_text: Vec<i64>,
    /// The rank of the best right text of each image, from 1.
    pub image_ranks: Vec<f64>,
    /// The rank of the right image of each text, from 1.
    pub text_ranks: Vec<f64>,
    /// The treatment of equal scores.
    pub ties: String,
}

impl Retrieved {
    /// Writes a score file as `vlmerge score retrieval` reads it, with ranks beside the scores.
    ///
    /// # Errors
    /// When a score is not a number, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let (n_images, n_texts) = (self.image_names.len(), self.image_of_text.len());
        let info = |dtype, shape: &[usize]| TensorInfo {
            dtype,
            shape: shape.to_vec(),
        };
        let image_ids: Vec<i64> = (0..n_images as i64).collect();
        let mut small: Vec<Small<'_>> = vec![
            small(IMAGE_ID, DType::I64, vec![n_images], &image_ids),
            small(IMAGE_RANK, DType::F64, vec![n_images], &self.image_ranks),
            small(
                TEXT_IMAGE_ID,
                DType::I64,
                vec![n_texts],
                &self.image_of_text,
            ),
            small(TEXT_RANK, DType::F64, vec![n_texts], &self.text_ranks),
        ];
        if let Scores::Reranked(_, reranked) = &self.scores {
            small.extend(shortlist(reranked, n_images, n_texts));
        }
        let mut tensors = vec![(SCORES.to_owned(), info(DType::F32, &[n_images, n_texts]))];
        tensors.extend(
            small
                .iter()
                .map(|(name, dtype, shape, _)| ((*name).to_owned(), info(*dtype, shape))),
        );
        // Names always have a JSON form.
        let names = serde_json::to_string(&self.image_names).unwrap_or_default();
        let mut metadata = BTreeMap::from([
            ("image_names".to_owned(), names),
            ("ties".to_owned(), self.ties.clone()),
        ]);
        if let Scores::Reranked(_, reranked) = &self.scores {
            metadata.insert(REST.to_owned(), reranked.rest().to_string());
        }
        let options = WriteOptions {
            force: true,
            ..WriteOptions::new(path)
        };
        let writer = Writer::create(&tensors, &metadata, &options)?;
        match &self.scores {
            Scores::Features(features) | Scores::Reranked(features, _) => {
                write_scores(&writer, &features.similarities())
            }
            Scores::Pairs(scores) => write_scores(&writer, &pairs(scores, n_images, n_texts)?),
        }?;
        for (index, (.., bytes)) in small.iter().enumerate() {
            writer.write(index + 1, 0, bytes)?;
        }
        writer.finish(&metadata)?;
        Ok(())
    }
}

/// A tensor beside the scores: its name, dtype, shape and bytes.
type Small<'a> = (&'static str, DType, Vec<usize>, &'a [u8]);

fn small<'a, T: Pod>(
    name: &'static str,
    dtype: DType,
    shape: Vec<usize>,
    values: &'a [T],
) -> Small<'a> {
    (name, dtype, shape, bytemuck::cast_slice(values))
}

/// The tensors of items ranked once more.
fn shortlist(reranked: &Reranked, n_images: usize, n_texts: usize) -> [Small<'_>; 4] {
    let (list, k) = (reranked.shortlist(), reranked.shortlist().k());
    let [of_images, of_texts] = [vec![n_images, k], vec![n_texts, k]];
    [
        small(IMAGE_TOP, DType::U32, of_images.clone(), list.of_images()),
        small(IMAGE_TOP_SCORE, DType::F32, of_images, reranked.of_images()),
        small(TEXT_TOP, DType::U32, of_texts.clone(), list.of_texts()),
        small(TEXT_TOP_SCORE, DType::F32, of_texts, reranked.of_texts()),
    ]
}

/// Scores of pairs as a matrix.
///
/// # Errors
/// [`Error::LengthsDiffer`] when there are not as many as pairs.
pub fn pairs(scores: &[f32], n_images: usize, n_texts: usize) -> Result<ArrayView2<'_, f32>> {
    let view = ArrayView2::from_shape((n_images, n_texts), scores);
    view.map_err(|_| Error::LengthsDiffer {
        what: "scores and pairs",
        left: scores.len(),
        right: n_images * n_texts,
    })
}

/// Writes the first tensor of a file, block by block.
fn write_scores(writer: &Writer, scores: &impl ScoreMatrix<Score = f32>) -> Result<()> {
    let (n_images, n_texts) = scores.shape();
    let n_at_once = scores.rows_at_once();
    for first in (0..n_images).step_by(n_at_once) {
        let n = n_at_once.min(n_images - first);
        let mut rows = vec![0.0_f32; n * n_texts];
        scores.read_rows(first, &mut rows)?;
        if let Some(place) = rows.iter().position(|score| score.is_nan()) {
            return Err(Error::ScoreNotANumber {
                row: first + place / n_texts,
            });
        }
        let at = (first * n_texts * size_of::<f32>()) as u64;
        writer.write(0, at, bytemuck::cast_slice(&rows))?;
    }
    Ok(())
}
