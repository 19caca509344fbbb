//! Retrieval: a safetensors file with a score matrix and the ids of its rows and columns.

use std::marker::PhantomData;
use std::path::Path;

use merge::io::OpenOptions;
use merge::{Checkpoint, DType, decode_f32, decode_f64};

use crate::metrics::folds::sample_of_folds;
use crate::metrics::reranking::{Reranked, Rest, Shortlist};
use crate::metrics::retrieval::{Captions, Score, ScoreMatrix, Standings, Ties, standings};
use crate::{Error, Result, Sample, ScoresFault, ShortlistFault};

/// Scores: images × texts, any floating point type.
pub const SCORES: &str = "scores";
/// The image of each row.
pub const IMAGE_ID: &str = "image_id";
/// The image of each column's text.
pub const TEXT_IMAGE_ID: &str = "text_image_id";

/// Columns of the texts of each image that were ranked once more, images × k, the best by [`SCORES`] first.
pub const IMAGE_TOP: &str = "image_top";
/// Their scores, images × k.
pub const IMAGE_TOP_SCORE: &str = "image_top_score";
/// Rows of the images of each text that were ranked once more, texts × k, the best by [`SCORES`] first.
pub const TEXT_TOP: &str = "text_top";
/// Their scores, texts × k.
pub const TEXT_TOP_SCORE: &str = "text_top_score";
/// The metadata that says how items stand to each other that were not ranked once more.
pub const REST: &str = "rerank_rest";

/// A score file, open: its ids; scores are read on request.
pub struct ScoreFile {
    checkpoint: Checkpoint,
    /// The items ranked once more, of a file that has them.
    reranked: Option<Reranked>,
    /// The image of each row.
    pub image_ids: Vec<i64>,
    /// The image of each column's text.
    pub text_image_ids: Vec<i64>,
}

impl ScoreFile {
    /// Opens a file with the tensors [`SCORES`], [`IMAGE_ID`] and [`TEXT_IMAGE_ID`].
    ///
    /// # Errors
    /// [`Error::Merge`] when the file is damaged or lacks a tensor, [`ScoresFault::TensorShape`],
    /// [`ScoresFault::IdsNotIntegers`].
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = merge::io::open(path, &OpenOptions::default())?;
        let shape = checkpoint.require(SCORES)?.shape.clone();
        let [n_images, n_texts] = shape[..] else {
            return Err(ScoresFault::TensorShape {
                path: path.into(),
                key: SCORES,
                found: shape,
                expected: "images × texts".into(),
            }
            .into());
        };
        Ok(Self {
            image_ids: read_ids(&checkpoint, path, IMAGE_ID, &[n_images])?,
            text_image_ids: read_ids(&checkpoint, path, TEXT_IMAGE_ID, &[n_texts])?,
            reranked: read_reranked(&checkpoint, path, n_images, n_texts)?,
            checkpoint,
        })
    }

    /// The items ranked once more, of a file that has them.
    #[must_use]
    pub fn reranked(&self) -> Option<&Reranked> {
        self.reranked.as_ref()
    }

    /// All scores in f32, image by image.
    ///
    /// # Errors
    /// [`Error::Merge`] when they cannot be read, [`Error::ScoreNotANumber`].
    pub fn all_scores(&self) -> Result<Vec<f32>> {
        let n_texts = self.text_image_ids.len();
        let mut values = vec![0.0; self.image_ids.len() * n_texts];
        if n_texts > 0 {
            self.matrix::<f32>().read_rows(0, &mut values)?;
        }
        match values.iter().position(|score| score.is_nan()) {
            None => Ok(values),
            Some(place) => Err(Error::ScoreNotANumber {
                row: place / n_texts.max(1),
            }),
        }
    }

    /// Ranks all images for every text and all texts for every image, in the precision of the
    /// file; those that were ranked once more by their new scores.
    ///
    /// # Errors
    /// The errors of [`standings`], and [`Error::Merge`] when scores cannot be read.
    pub fn standings(&self, captions: &Captions) -> Result<Standings> {
        let found = match self.checkpoint.require(SCORES)?.dtype {
            DType::F64 => standings(&self.matrix::<f64>(), captions),
            _ => standings(&self.matrix::<f32>(), captions),
        }?;
        Ok(match &self.reranked {
            Some(reranked) => reranked.standings(&found, captions),
            None => found,
        })
    }

    /// The numbers of folds of the images, averaged: see [`sample_of_folds`].
    ///
    /// # Errors
    /// [`ShortlistFault::Folds`], what [`sample_of_folds`] returns, and [`Error::Merge`] when scores cannot be read.
    pub fn folds(&self, n_folds: usize, ties: Ties) -> Result<Sample> {
        if self.reranked.is_some() {
            return Err(ShortlistFault::Folds.into());
        }
        let (images, texts) = (&self.image_ids, &self.text_image_ids);
        match self.checkpoint.require(SCORES)?.dtype {
            DType::F64 => sample_of_folds(&self.matrix::<f64>(), images, texts, n_folds, ties),
            _ => sample_of_folds(&self.matrix::<f32>(), images, texts, n_folds, ties),
        }
    }

    fn matrix<T>(&self) -> FileMatrix<'_, T> {
        FileMatrix {
            file: self,
            score: PhantomData,
        }
    }
}

/// Reads a vector of ids of any integer type.
fn read_ids(
    checkpoint: &Checkpoint,
    path: &Path,
    key: &'static str,
    shape: &[usize],
) -> Result<Vec<i64>> {
    let info = checkpoint.require(key)?;
    if info.shape != shape {
        return Err(ScoresFault::TensorShape {
            path: path.into(),
            key,
            found: info.shape.clone(),
            expected: format!("{shape:?}, as in `{SCORES}`"),
        }
        .into());
    }
    let bytes = checkpoint.read_all(key)?;
    match info.dtype {
        DType::I64 => Ok(integers(&bytes, i64::from_le_bytes)),
        DType::I32 => Ok(integers(&bytes, |b| i32::from_le_bytes(b).into())),
        DType::U32 => Ok(integers(&bytes, |b| u32::from_le_bytes(b).into())),
        DType::I16 => Ok(integers(&bytes, |b| i16::from_le_bytes(b).into())),
        DType::U16 => Ok(integers(&bytes, |b| u16::from_le_bytes(b).into())),
        DType::U8 => Ok(integers(&bytes, |[b]| b.into())),
        dtype => Err(ScoresFault::IdsNotIntegers {
            path: path.into(),
            key,
            dtype,
        }
        .into()),
    }
}

/// Reads the items ranked once more, if the file has them.
fn read_reranked(
    checkpoint: &Checkpoint,
    path: &Path,
    n_images: usize,
    n_texts: usize,
) -> Result<Option<Reranked>> {
    let Some(info) = checkpoint.get(IMAGE_TOP) else {
        return Ok(None);
    };
    let k = info.shape.last().copied().unwrap_or_default();
    let list = |key, n_queries: usize, n_items: usize| {
        let items = read_ids(checkpoint, path, key, &[n_queries, k])?;
        let items = items.iter().map(|&item| match u32::try_from(item) {
            Ok(small) if (small as usize) < n_items => Ok(small),
            _ => Err(Error::from(ShortlistFault::NoSuchItem {
                path: path.into(),
                key,
                item,
                n_items,
            })),
        });
        items.collect::<Result<Vec<u32>>>()
    };
    let of_images = list(IMAGE_TOP, n_images, n_texts)?;
    let of_texts = list(TEXT_TOP, n_texts, n_images)?;
    let shortlist = Shortlist::given(k, of_images, of_texts, [n_images, n_texts])?;
    let scores = |key| {
        let info = checkpoint.require(key)?;
        let bytes = checkpoint.read_all(key)?;
        let mut scores = vec![0.0_f32; info.n_elements()];
        decode_f32(key, info.dtype, &bytes, &mut scores)?;
        Ok::<_, Error>(scores)
    };
    let rest = checkpoint.info().metadata.get(REST);
    let rest = rest.map_or(Ok(Rest::default()), |rest| rest.parse());
    let rest = rest.map_err(|expected| ShortlistFault::OtherRest {
        path: path.into(),
        expected,
    })?;
    let scores = [scores(IMAGE_TOP_SCORE)?, scores(TEXT_TOP_SCORE)?];
    let [of_images, of_texts] = scores;
    Reranked::new(shortlist, of_images, of_texts, rest).map(Some)
}

fn integers<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.iter().map(|&element| decode(element)).collect()
}

/// The scores of a file as numbers of type `T`.
struct FileMatrix<'a, T> {
    file: &'a ScoreFile,
    score: PhantomData<fn() -> T>,
}

/// Bytes to numbers.
trait Decode: Score {
    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]) -> merge::Result<()>;
}

impl Decode for f32 {
    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]) -> merge::Result<()> {
        decode_f32(SCORES, dtype, bytes, out)
    }
}

impl Decode for f64 {
    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]) -> merge::Result<()> {
        decode_f64(SCORES, dtype, bytes, out)
    }
}

impl<T: Decode> ScoreMatrix for FileMatrix<'_, T> {
    type Score = T;

    fn shape(&self) -> (usize, usize) {
        (self.file.image_ids.len(), self.file.text_image_ids.len())
    }

    fn read(&self, row: usize, column: usize, out: &mut [T]) -> Result<()> {
        let checkpoint = &self.file.checkpoint;
        let dtype = checkpoint.require(SCORES)?.dtype;
        let first = row * self.file.text_image_ids.len() + column;
        let mut bytes = vec![0; out.len() * dtype.size_bytes()];
        checkpoint.read(SCORES, first, &mut bytes)?;
        T::decode(dtype, &bytes, out)?;
        Ok(())
    }
}
