//! Embeddings of pictures and texts, in order.
//!
//! [`images`] and [`texts`] compute rows with any model that encodes images and texts apart, and keep
//! each batch in [`Rows`] at once; [`Embeddings`] writes them as safetensors or `.npy`, with ids.

mod lines;
mod output;
mod rows;

use candle_core::{DType, Device};
use merge::Progress;

pub use lines::lines;
pub use output::{Container, Embeddings};
pub use rows::Rows;

use crate::batch::{Images, Texts};
use crate::datasets::prefetch;
use crate::images::{Rgb, Transform};
use crate::models::{Branch, Model, image_features, text_features};
use crate::nn::Pass;
use crate::text::{TextKind, Tokenizer};
use crate::{EncodeFault, Error, Result};

/// Batches that are decoded ahead.
const BATCHES_AHEAD: usize = 4;

/// A model, and where and how it runs.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// The device of the model.
    pub device: &'a Device,
    /// The type of its numbers.
    pub dtype: DType,
    /// Examples that are computed together.
    pub batch_size: usize,
    /// Receives the progress, and may stop the run.
    pub progress: &'a dyn Progress,
}

impl Encoder<'_> {
    fn keep(&self, features: &candle_core::Tensor, n: usize, rows: &mut Rows) -> Result<()> {
        let values: Vec<f32> = features.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let width = values.len() / n.max(1);
            return Err(Error::Encode(EncodeFault::FeatureNotFinite {
                row: rows.n_rows() + place / width.max(1),
            }));
        }
        rows.append(&values, n)?;
        self.progress.advance(n as u64);
        match self.progress.is_cancelled() {
            true => Err(merge::Error::Cancelled.into()),
            false => Ok(()),
        }
    }
}

/// Computes the rows of images that `rows` lacks: `(n, d)` of length one. `picture` decodes the image of
/// a number, on several threads.
///
/// # Errors
/// [`ModelFault::Incapable`](crate::ModelFault::Incapable) when the model does not encode images apart;
/// when a picture cannot be read, the device or the disk fails, or the user stops it. Batches that are
/// done stay.
pub fn images(
    encoder: &Encoder<'_>,
    n: usize,
    picture: impl Fn(usize) -> Result<Rgb> + Send + Sync + 'static,
    rows: &mut Rows,
) -> Result<()> {
    encoder.model.dual()?;
    let transform = Transform::new(&encoder.model.input().image);
    let side = encoder.model.input().image.side;
    let todo: Vec<usize> = (rows.n_rows()..n).collect();
    let batches: Vec<Vec<usize>> = (todo.chunks(encoder.batch_size.max(1)))
        .map(<[usize]>::to_vec)
        .collect();
    let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
    encoder.progress.start_items("images", todo.len() as u64);
    let load = move |batch: Vec<usize>| {
        let mut values = vec![0.0; batch.len() * transform.len()];
        for (&index, values) in batch.iter().zip(values.chunks_exact_mut(transform.len())) {
            transform.apply_into(&picture(index)?, values);
        }
        Ok(values)
    };
    let loaded = prefetch(batches, rayon::current_num_threads(), BATCHES_AHEAD, load);
    let run = || {
        for (values, n) in loaded.zip(sizes) {
            let images = Images::of_values(values?, n, side, encoder.device, encoder.dtype)?;
            let features = image_features(encoder.model, &images, Branch::Apart, &Pass::new())?;
            encoder.keep(&features, n, rows)?;
        }
        Ok(())
    };
    let done = run();
    encoder.progress.finish();
    done
}

/// Computes the rows of texts that `rows` lacks: `(n, d)` of length one. Texts are read as captions.
///
/// # Errors
/// [`ModelFault::Incapable`](crate::ModelFault::Incapable) when the model does not encode texts apart;
/// when the tokenizer is of another vocabulary, the device or the disk fails, or the user stops it.
/// Batches that are done stay.
pub fn texts(
    encoder: &Encoder<'_>,
    tokenizer: &Tokenizer,
    texts: &[String],
    rows: &mut Rows,
) -> Result<()> {
    encoder.model.dual()?;
    let input = &encoder.model.input().text;
    let tokenizer = tokenizer.for_input(input)?;
    let todo = &texts[rows.n_rows().min(texts.len())..];
    encoder.progress.start_items("texts", todo.len() as u64);
    let mut run = || {
        for batch in todo.chunks(encoder.batch_size.max(1)) {
            let encoded: Vec<_> = (batch.iter())
                .map(|text| {
                    let text = tokenizer.read(input.rule, TextKind::Caption, text)?;
                    tokenizer.encode(&text, input.len)
                })
                .collect::<Result<_>>()?;
            let encoded: Vec<&_> = encoded.iter().collect();
            let len = input.padded_len(encoded.iter().map(|text| text.n_tokens));
            let of_batch = Texts::of_encoded(&encoded, len, encoder.device)?;
            let features = text_features(encoder.model, &of_batch, Branch::Apart, &Pass::new())?;
            encoder.keep(&features, batch.len(), rows)?;
        }
        Ok(())
    };
    let done = run();
    encoder.progress.finish();
    done
}
