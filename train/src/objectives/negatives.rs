//! Hard negatives: for each image and text of the whole batch another one that is much like its own.

use candle_core::{Device, Tensor};

use super::comparison::{similarities, stretches};
use super::{PairFeatures, Step, gather};
use crate::batch::{Batch, Images, Texts};
use crate::{Error, Result};

/// What a pair that does not belong together is drawn with at least, in shares of the softmax: the
/// published program has no such floor, and fails where the softmax gives one pair everything.
const FLOOR: f32 = 1e-6;

/// Rows of the whole batch, one for each row of this rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negatives {
    /// For each text of this rank an image that is not its own.
    pub images: Vec<u32>,
    /// For each image of this rank a text that is not its own.
    pub texts: Vec<u32>,
}

/// Gives examples of the whole batch, wherever they are computed.
pub trait Others {
    /// Pictures by their rows in the whole batch.
    ///
    /// # Errors
    /// When they cannot be read.
    fn images(&self, rows: &[u32]) -> Result<Images>;

    /// Texts by their rows in the whole batch.
    ///
    /// # Errors
    /// When they cannot be read.
    fn texts(&self, rows: &[u32]) -> Result<Texts>;
}

/// What a part knows of the batch that it is a part of.
pub struct Whole<'a> {
    /// Negatives of this rank's rows; `None` where none could be drawn.
    pub negatives: Option<&'a Negatives>,
    /// This rank's first row.
    pub first: usize,
    /// The other examples.
    pub others: &'a dyn Others,
}

impl Whole<'_> {
    /// The negatives of a part: an image for each text, and a text for each image.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where none could be drawn; when examples cannot be read.
    pub fn others_of(&self, batch: &Batch) -> Result<(Images, Texts)> {
        let negatives = self.negatives;
        let negatives = negatives.ok_or(Error::NotFinite { part: "itm".into() })?;
        let rows = batch.first - self.first..batch.first - self.first + batch.n;
        Ok((
            self.others.images(&negatives.images[rows.clone()])?,
            self.others.texts(&negatives.texts[rows])?,
        ))
    }
}

/// Draws negatives by the softmax of similarities over all ranks. `own` are the features of this rank's
/// rows, which begin at `step.batch.first` of the whole batch.
///
/// # Errors
/// [`Error::NoNegative`] when the batch has one pair; [`Error::NotFinite`] when no similarity is a number,
/// after all ranks have met; when a rank is gone or the device fails.
pub(crate) fn draw_negatives(own: &PairFeatures, step: &Step<'_>) -> Result<Negatives> {
    let (images, texts) = (&own.images, &own.texts);
    let scale = own.scale(step)?;
    let everyone = 0..step.collective.size();
    let all_images = gather::rows::<f32>(images, &everyone, step.collective)?;
    let all_texts = gather::rows::<f32>(texts, &everyone, step.collective)?;
    let first = step.collective.rank() * images.dim(0)?;
    let draws = |name: &str, row: usize| step.draws(name, step.batch.first + row);
    Ok(Negatives {
        images: one_side(texts, &all_images, scale, first, |row| {
            draws("itm.image", row)
        })?,
        texts: one_side(images, &all_texts, scale, first, |row| {
            draws("itm.text", row)
        })?,
    })
}

fn one_side(
    own: &Tensor,
    others: &Tensor,
    scale: f64,
    first: usize,
    draws: impl Fn(usize) -> merge::random::Sequence,
) -> Result<Vec<u32>> {
    let (n_rows, n_others) = (own.dim(0)?, others.dim(0)?);
    if n_others < 2 {
        return Err(Error::NoNegative);
    }
    let mut drawn = Vec::with_capacity(n_rows);
    for stretch in stretches(n_rows, n_others) {
        let rows = similarities(own, others, scale, stretch)?;
        let rows: Vec<Vec<f32>> = rows.to_device(&Device::Cpu)?.to_vec2()?;
        for (at, mut weights) in rows.into_iter().enumerate() {
            let row = stretch.0 + at;
            let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights
                .iter_mut()
                .for_each(|weight| *weight = (*weight - largest).exp());
            let sum: f32 = weights.iter().sum();
            weights
                .iter_mut()
                .for_each(|weight| *weight = *weight / sum + FLOOR);
            weights[first + row] = 0.0;
            let other = draws(row).weighted(&weights);
            drawn.push(other.ok_or(Error::NotFinite { part: "itm".into() })? as u32);
        }
    }
    Ok(drawn)
}
