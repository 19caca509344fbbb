//! Image-text matching (ITM) with hard negatives.

use std::ops::Range;

use candle_core::Tensor;
use evaluate::batch::Pair;
use evaluate::crossing;
use evaluate::models::Head;
use evaluate::nn::{Pass, cross_entropy, n_right};

use super::{
    Loss, Needs, Objective, ObjectiveSpec, PairFeatures, PairSettings, Step, draw_negatives, gather,
};
use crate::Result;
use crate::batch::{Batch, Images, Texts};
use crate::collective::Collective;

/// Whether text and image belong together: each pair of the batch, each text with another image,
/// each image with another text, the others drawn by their similarity over all ranks.
///
/// Li et al. 2021, "Align before Fuse", <https://arxiv.org/abs/2107.07651>, section 3.2; Bao et al.
/// 2021, "VLMo", section 3.3.
#[derive(Clone, Copy, Debug, Default)]
pub struct Matching {
    /// The rules that exclude pairs as negatives and draw the others.
    pub pairs: PairSettings,
}

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "itm",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Matching],
    after: &["itc"],
    reads: &["pairs"],
    open: |opening| {
        let pairs = opening.pairs()?;
        Ok(Box::new(Matching { pairs }))
    },
};

impl Objective for Matching {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn negatives(&self) -> Option<PairSettings> {
        Some(self.pairs)
    }

    fn n_passes(&self, _: &Batch) -> usize {
        3
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (image, text, b) = (step.image()?, step.text()?, step.batch.n);
        let (other_image, other_text) = match step.whole {
            Some(whole) => whole.others_of(step.batch)?,
            None => others(step, self.pairs)?,
        };
        let model = step.model.fusion()?;
        let pooled = |name: &str, text: &Texts, image: &Images| {
            let ways = step.ways(name);
            let pass = step.pass(&ways);
            model.matched(&Pair::new(text, image), &pass)
        };
        let pooled = [
            pooled("itm.positive", text, image)?,
            pooled("itm.other_image", text, &other_image)?,
            pooled("itm.other_text", &other_text, image)?,
        ];
        let logits = step
            .model
            .score(Head::Matching, &Tensor::cat(&pooled, 0)?)?;
        let targets: Vec<u32> = (0..3 * b).map(|row| u32::from(row < b)).collect();
        let value = cross_entropy(&logits, &targets)?;
        let n_right = n_right(&logits, &targets)?;
        Loss::mean(value, vec![("itm_accuracy", n_right, 3.0 * b as f64)])
    }
}

/// Negatives of a batch that is computed in one part: an image for each text, a text for each image.
fn others(step: &Step<'_>, pairs: PairSettings) -> Result<(Images, Texts)> {
    let features = match (&step.batch.negatives, step.shared.features.borrow().clone()) {
        (Some(_), _) => None,
        (None, Some(features)) => Some(features),
        (None, None) => Some(PairFeatures::apart(step, [&Pass::new(); 2])?.detached()?),
    };
    // All ranks meet here before any of them may fail to draw.
    let everyone = 0..step.collective.size();
    let pixels = gather::rows::<f32>(&step.image()?.pixels, &everyone, step.collective)?;
    let images = Images::new(pixels);
    let texts = all_texts(step.text()?, &everyone, step.collective)?;
    let negatives = match (&step.batch.negatives, features) {
        (Some(given), _) => given.clone(),
        (None, Some(features)) => draw_negatives(&features, pairs, step)?,
        (None, None) => return Err(crate::Error::NotInBatch { what: "features" }),
    };
    let device = images.pixels.device();
    let rows = |of: Vec<u32>| {
        let n = of.len();
        crossing::to_device(of, n, device)
    };
    Ok((
        images.select(&rows(negatives.images)?)?,
        texts.select(&rows(negatives.texts)?)?,
    ))
}

/// The texts of all ranks in their order, padded to the longest of them.
fn all_texts(own: &Texts, ranks: &Range<usize>, collective: &dyn Collective) -> Result<Texts> {
    if collective.size() == 1 {
        return Ok(own.clone());
    }
    let len = own.ids.dim(1)?;
    let lens = gather::numbers(&[len as u64], ranks, collective)?;
    let longest = lens.into_iter().max().unwrap_or(0) as usize;
    // No token sees padding, whatever its id.
    let padded = |x: &Tensor| x.pad_with_zeros(1, 0, longest.saturating_sub(len));
    let ids = gather::rows::<u32>(&padded(&own.ids)?, ranks, collective)?;
    let kept = gather::rows::<u8>(&padded(&own.kept)?, ranks, collective)?;
    Ok(Texts::of_tensors(ids, kept)?)
}
