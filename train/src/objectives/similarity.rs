//! Similarities of images and texts over all ranks.

use candle_core::{DType, Tensor};
use evaluate::models::Similarity;
use evaluate::nn::cross_entropy;

use super::step::{Similarities, Step};
use crate::Result;
use crate::collective::Collective;

/// The contrastive loss of features that are of length one, and the similarities behind it.
pub(super) struct Contrast {
    /// Its gradients, averaged over the ranks, are those of the whole batch's loss.
    pub value: Tensor,
    /// The whole batch's loss.
    pub reported: f64,
    /// Of this rank's images, how many have their own text as the nearest.
    pub images_hit: f64,
    /// Of this rank's texts, how many have their own image as the nearest.
    pub texts_hit: f64,
    /// Without a graph.
    pub similarities: Similarities,
}

/// Rows of all ranks in their order, this rank's with the graph behind them.
fn gathered(own: &Tensor, collective: &dyn Collective) -> Result<Tensor> {
    if collective.size() == 1 {
        return Ok(own.clone());
    }
    let values: Vec<f32> = own.detach().flatten_all()?.to_vec1()?;
    let mut parts = Vec::with_capacity(collective.size());
    let all = collective.gather(bytemuck::cast_slice(&values))?;
    for (rank, bytes) in all.iter().enumerate() {
        if rank == collective.rank() {
            parts.push(own.clone());
            continue;
        }
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
        parts.push(Tensor::from_vec(values, own.shape(), own.device())?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Cross entropy both ways over all ranks' images and texts, `(b, d)` each.
///
/// Every rank computes the whole batch's loss, with a graph behind its own features alone. Averaged
/// over W ranks, the gradients by features would be a W-th of what they should be, so the value is
/// W times the loss; the similarity's scale and bias, which every rank sees whole, get a W-th of
/// their gradients in turn.
pub(super) fn contrast(
    image: &Tensor,
    text: &Tensor,
    similarity: &Similarity,
    step: &Step<'_>,
) -> Result<Contrast> {
    let (image, text) = (image.to_dtype(DType::F32)?, text.to_dtype(DType::F32)?);
    let (b, n_ranks) = (image.dim(0)?, step.collective.size());
    let images = gathered(&image, step.collective)?;
    let texts = gathered(&text, step.collective)?;
    let share = 1.0 / n_ranks as f64;
    let similarity = match n_ranks {
        1 => similarity.clone(),
        _ => similarity.sharing(share)?,
    };
    let logits = similarity.logits(&images, &texts)?; // (g, g)
    let targets: Vec<u32> = (0..logits.dim(0)? as u32).collect();
    let by_text = logits.t()?.contiguous()?;
    let loss = ((cross_entropy(&logits, &targets)? + cross_entropy(&by_text, &targets)?)? * 0.5)?;
    let first = step.collective.rank() * b;
    let of_rank = |logits: &Tensor| logits.detach().narrow(0, first, b)?.contiguous();
    let similarities = Similarities {
        images: of_rank(&logits)?,
        texts: of_rank(&by_text)?,
    };
    Ok(Contrast {
        reported: f64::from(loss.to_scalar::<f32>()?),
        value: (loss * n_ranks as f64)?,
        images_hit: hits(&similarities.images, first)?,
        texts_hit: hits(&similarities.texts, first)?,
        similarities,
    })
}

/// Rows whose largest number stands in column `first + row`.
fn hits(rows: &Tensor, first: usize) -> Result<f64> {
    let best: Vec<u32> = rows.argmax(1)?.to_vec1()?;
    let is_hit = |&(row, best): &(usize, u32)| best as usize == first + row;
    Ok(best.into_iter().enumerate().filter(is_hit).count() as f64)
}
