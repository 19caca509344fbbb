//! Image-text matching (ITM) with hard negatives.

use candle_core::{DType, Device, Tensor};
use evaluate::batch::Pair;
use evaluate::models::{Branch, Head, image_features, text_features};
use evaluate::nn::{Pass, cross_entropy};

use super::similarity::contrast;
use super::step::Similarities;
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::batch::{Images, Texts};
use crate::{Error, Result};

/// What a pair that does not belong together is drawn with at least, in shares of the softmax: the
/// published program has no such floor, and fails where the softmax gives one pair everything.
const FLOOR: f32 = 1e-6;

/// Whether text and image belong together: each pair of the batch, each text with another image,
/// each image with another text, the others drawn by their similarity over all ranks.
///
/// Li et al. 2021, "Align before Fuse", <https://arxiv.org/abs/2107.07651>, section 3.2; Bao et al.
/// 2021, "VLMo", section 3.3.
#[derive(Clone, Copy, Debug)]
pub struct Matching;

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
    open: |_| Ok(Box::new(Matching)),
};

impl Objective for Matching {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (image, text, b) = (step.image()?, step.text()?, step.batch.n);
        let similarities = match step.shared.similarities.borrow().as_ref() {
            Some(similarities) => similarities.clone(),
            None => similarities(step)?,
        };
        let all_images = all_images(image, step)?;
        let all_texts = all_texts(text, step)?;
        let other_image = draw(&similarities.texts, "itm.image", step)?;
        let other_text = draw(&similarities.images, "itm.text", step)?;
        let (other_image, other_text) = (
            all_images.select(&other_image)?,
            all_texts.select(&other_text)?,
        );
        let model = step.model.fusion()?;
        let pooled = |name: &str, text: &Texts, image: &Images| {
            let omission = step.omission(name);
            let pass = step.pass(&omission);
            model.pooled(&model.fuse(&Pair::new(text, image), &pass)?)
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
        let n_right = super::n_right(&logits, &targets)?;
        Loss::mean(value, vec![("itm_accuracy", n_right, 3.0 * b as f64)])
    }
}

/// Similarities, where no objective before has left them.
fn similarities(step: &Step<'_>) -> Result<Similarities> {
    let (model, branch, pass) = (step.model, Branch::Apart, Pass::new());
    let image = image_features(model, step.image()?, branch, &pass)?;
    let text = text_features(model, step.text()?, branch, &pass)?;
    let similarity = model.dual()?.similarity(branch)?.detached();
    Ok(contrast(&image.detach(), &text.detach(), &similarity, step)?.similarities)
}

/// For each row of this rank another one of the whole batch, by the softmax of `similarities`.
fn draw(similarities: &Tensor, name: &str, step: &Step<'_>) -> Result<Tensor> {
    let (b, g) = similarities.dims2()?;
    if g < 2 {
        return Err(Error::NoNegative);
    }
    let rows: Vec<Vec<f32>> = similarities.to_device(&Device::Cpu)?.to_vec2()?;
    let first_of_rank = step.collective.rank() * b;
    let mut drawn = Vec::with_capacity(b);
    for (row, mut weights) in rows.into_iter().enumerate() {
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights
            .iter_mut()
            .for_each(|weight| *weight = (*weight - largest).exp());
        let sum: f32 = weights.iter().sum();
        weights
            .iter_mut()
            .for_each(|weight| *weight = *weight / sum + FLOOR);
        weights[first_of_rank + row] = 0.0;
        let other = step.draws(name, step.batch.first + row).weighted(&weights);
        drawn.push(other.ok_or(Error::NotFinite { part: "itm".into() })? as u32);
    }
    Ok(Tensor::new(drawn, step.image()?.pixels.device())?)
}

/// The pictures of all ranks in their order.
fn all_images(own: &Images, step: &Step<'_>) -> Result<Images> {
    if step.collective.size() == 1 {
        return Ok(own.clone());
    }
    let own = &own.pixels;
    let values: Vec<f32> = own.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut parts = Vec::new();
    for bytes in step.collective.gather(bytemuck::cast_slice(&values))? {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let part = Tensor::from_vec(values, own.shape(), &Device::Cpu)?;
        parts.push(part.to_device(own.device())?.to_dtype(own.dtype())?);
    }
    Ok(Images::new(Tensor::cat(&parts, 0)?))
}

/// The texts of all ranks in their order.
fn all_texts(own: &Texts, step: &Step<'_>) -> Result<Texts> {
    if step.collective.size() == 1 {
        return Ok(own.clone());
    }
    let shape = own.ids.shape();
    let ids: Vec<u32> = own.ids.flatten_all()?.to_vec1()?;
    let kept: Vec<u8> = own.kept.flatten_all()?.to_vec1()?;
    let (mut all_ids, mut all_kept) = (Vec::new(), Vec::new());
    for bytes in step.collective.gather(bytemuck::cast_slice(&ids))? {
        let ids: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        all_ids.push(Tensor::from_vec(ids, shape, own.ids.device())?);
    }
    for bytes in step.collective.gather(&kept)? {
        all_kept.push(Tensor::from_vec(bytes, shape, own.ids.device())?);
    }
    let all = Texts::of_tensors(Tensor::cat(&all_ids, 0)?, Tensor::cat(&all_kept, 0)?);
    Ok(all?)
}
