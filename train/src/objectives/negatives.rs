//! Hard negatives: for each image and text of the whole batch another one that is much like its own.

use candle_core::Tensor;
use evaluate::crossing;

use super::comparison::{similarities, stretches};
use super::{PairFeatures, PairSettings, Step, gather};
use crate::batch::{Batch, Images, Texts};
use crate::{Error, Result};

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

/// The whole batch, as a part of it needs to know it.
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
pub(crate) fn draw_negatives(
    own: &PairFeatures,
    pairs: PairSettings,
    step: &Step<'_>,
) -> Result<Negatives> {
    let (images, texts) = (&own.images, &own.texts);
    let scale = own.scale(step)?;
    let everyone = 0..step.collective.size();
    let all_images = gather::rows::<f32>(images, &everyone, step.collective)?;
    let all_texts = gather::rows::<f32>(texts, &everyone, step.collective)?;
    let first = step.collective.rank() * images.dim(0)?;
    let same = pairs.images(step.batch)?;
    let same = same.map(|same| gather::numbers(same, &everyone, step.collective));
    let same = same.transpose()?;
    let draws = |name: &str, row: usize| step.draws(name, step.batch.first + row);
    let rules = NegativeRules {
        scale,
        first,
        floor: pairs.floor as f32,
        same: same.as_deref(),
    };
    Ok(Negatives {
        images: one_side(texts, &all_images, &rules, |row| draws("itm.image", row))?,
        texts: one_side(images, &all_texts, &rules, |row| draws("itm.text", row))?,
    })
}

/// The rules of drawing negatives.
#[derive(Clone, Copy, Debug)]
pub struct NegativeRules<'a> {
    /// The factor of similarities.
    pub scale: f64,
    /// This rank's first row.
    pub first: usize,
    /// The least probability of a negative, in shares of the softmax.
    pub floor: f32,
    /// A number for each row of all ranks: rows of the same number are no negatives of one another.
    pub same: Option<&'a [u32]>,
}

impl NegativeRules<'_> {
    /// Turns the similarities of a row with all candidates into the weights that its negative is drawn by:
    /// the softmax and the floor, and 0 for what belongs to the row.
    pub fn weigh(&self, row: usize, similarities: &mut [f32]) {
        let largest = similarities
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        similarities
            .iter_mut()
            .for_each(|weight| *weight = (*weight - largest).exp());
        let sum: f32 = similarities.iter().sum();
        let own = self.first + row;
        for (other, weight) in similarities.iter_mut().enumerate() {
            let is_own = match self.same {
                Some(same) => same.get(other) == same.get(own),
                None => other == own,
            };
            *weight = match is_own {
                true => 0.0,
                false => *weight / sum + self.floor,
            };
        }
    }
}

fn one_side(
    own: &Tensor,
    others: &Tensor,
    rules: &NegativeRules<'_>,
    draws: impl Fn(usize) -> merge::random::Sequence,
) -> Result<Vec<u32>> {
    let (n_rows, n_others) = (own.dim(0)?, others.dim(0)?);
    if n_others < 2 {
        return Err(Error::NoNegative);
    }
    let mut drawn = Vec::with_capacity(n_rows);
    for stretch in stretches(n_rows, n_others) {
        let rows = similarities(own, others, rules.scale, stretch)?;
        let rows: Vec<f32> = crossing::to_memory(&rows)?;
        for (at, weights) in rows.chunks_exact(n_others.max(1)).enumerate() {
            let mut weights = weights.to_vec();
            let row = stretch.0 + at;
            rules.weigh(row, &mut weights);
            if weights.iter().all(|weight| *weight == 0.0) {
                return Err(Error::NoNegative);
            }
            let other = draws(row).weighted(&weights);
            drawn.push(other.ok_or(Error::NotFinite { part: "itm".into() })? as u32);
        }
    }
    Ok(drawn)
}
