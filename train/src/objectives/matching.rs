//! Image-text matching (ITM) with hard negatives.

use candle_core::{DType, Device, Tensor};
use evaluate::batch::Pair;
use evaluate::models::{Branch, Head, image_features, text_features};
use evaluate::nn::{Pass, cross_entropy};

use super::{Loss, Needs, Objective, ObjectiveSpec, PairFeatures, Step, draw_negatives};
use crate::Result;
use crate::batch::{Images, Texts};

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

    fn draws_negatives(&self) -> bool {
        true
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (image, text, b) = (step.image()?, step.text()?, step.batch.n);
        let (other_image, other_text) = match step.whole {
            Some(whole) => whole.others_of(step.batch)?,
            None => others(step)?,
        };
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

/// Negatives of a batch that is computed in one part: an image for each text, a text for each image.
fn others(step: &Step<'_>) -> Result<(Images, Texts)> {
    let left = step.shared.features.borrow().clone();
    let features = match left {
        Some(features) => features,
        None => features(step)?,
    };
    // All ranks meet here before any of them may fail to draw.
    let images = all_images(step.image()?, step)?;
    let texts = all_texts(step.text()?, step)?;
    let negatives = draw_negatives(&features, step)?;
    let device = images.pixels.device();
    Ok((
        images.select(&Tensor::new(negatives.images, device)?)?,
        texts.select(&Tensor::new(negatives.texts, device)?)?,
    ))
}

/// Features, where no objective before has left them.
fn features(step: &Step<'_>) -> Result<PairFeatures> {
    let (model, branch, pass) = (step.model, Branch::Apart, Pass::new());
    let features = PairFeatures {
        branch,
        images: image_features(model, step.image()?, branch, &pass)?,
        texts: text_features(model, step.text()?, branch, &pass)?,
    };
    features.detached()
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
