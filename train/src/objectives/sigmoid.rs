//! SigLIP's contrast: every pair of an image and a text on its own, right or wrong.

use candle_core::{DType, Tensor};
use evaluate::crossing;
use evaluate::models::Head;

use super::comparison::{Compared, Comparison, Contrast, Features, Group, similarities, stretches};
use super::feature_loss::{FeatureLoss, PairFeatures, in_one_part};
use super::{Loss, Needs, Objective, ObjectiveSpec, PairSettings, Step};
use crate::Result;
use crate::batch::Batch;

/// The loss of every pair on its own: `−(1/n) Σᵢⱼ ln σ(zᵢⱼ sᵢⱼ)` over `n` images and all texts, where `s` are similarities
/// times a factor plus a bias, both learned, and `z` is 1 for what belongs together and −1 otherwise.
///
/// Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", <https://arxiv.org/abs/2303.15343>, section 3.2.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sigmoid {
    /// The rule by which texts belong to an image.
    pub pairs: PairSettings,
}

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "sigmoid",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Contrastive],
    after: &[],
    reads: &["pairs"],
    open: |opening| {
        let pairs = opening.pairs()?;
        Ok(Box::new(Sigmoid { pairs }))
    },
};

impl Objective for Sigmoid {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        in_one_part(self, step)
    }

    fn of_features(&self) -> Option<&dyn FeatureLoss> {
        Some(self)
    }

    fn n_passes(&self, _: &Batch) -> usize {
        2
    }
}

impl FeatureLoss for Sigmoid {
    fn features(&self, step: &Step<'_>) -> Result<Vec<PairFeatures>> {
        let [of_images, of_texts] = [step.ways("sigmoid.image"), step.ways("sigmoid.text")];
        let passes = [&step.pass(&of_images), &step.pass(&of_texts)];
        Ok(vec![PairFeatures::apart(step, passes)?])
    }

    fn comparison(&self) -> Comparison {
        Comparison {
            contrast: Contrast::Sigmoid,
            ..Comparison::default()
        }
    }

    fn pairs(&self) -> PairSettings {
        self.pairs
    }

    fn accuracies(&self) -> [&'static str; 2] {
        ["sigmoid_i2t_accuracy", "sigmoid_t2i_accuracy"]
    }
}

/// The loss and the gradients of this rank's rows of one side with the group's of the other.
struct Side {
    /// The sum of losses over all of its pairs.
    loss: f64,
    /// The gradient of that by its rows, `(n, d)`.
    rows: Tensor,
    /// By the factor of similarities, and by the bias.
    by_scale: f64,
    by_bias: f64,
    hits: f64,
}

/// This rank's loss, that of its images with the texts of all ranks, and the gradients of the sum of all ranks' losses.
pub(super) fn compare(features: &Features<'_>, group: &Group) -> Result<Compared> {
    let n = features.images.dim(0)? as f64;
    let images = side(features, group, (features.images, &group.texts))?;
    let texts = side(features, group, (features.texts, &group.images))?;
    let loss = images.loss / n;
    Ok(Compared {
        image_loss: loss,
        text_loss: loss,
        images: (images.rows / n)?,
        // All ranks have as many images.
        texts: (texts.rows / n)?,
        scale: images.by_scale / n,
        bias: images.by_bias / n,
        images_hit: images.hits,
        texts_hit: texts.hits,
        n_rows: n,
    })
}

fn side(features: &Features<'_>, group: &Group, (own, others): (&Tensor, &Tensor)) -> Result<Side> {
    let (n_rows, n_candidates) = (own.dim(0)?, others.dim(0)?);
    let mut side = Side {
        loss: 0.0,
        rows: own.clone(),
        by_scale: 0.0,
        by_bias: 0.0,
        hits: 0.0,
    };
    let mut parts = Vec::new();
    for stretch in stretches(n_rows, n_candidates) {
        let (from, n) = stretch;
        let cosines = similarities(own, others, 1.0, stretch)?;
        let best: Vec<u32> = crossing::to_memory(&cosines.argmax(1)?)?;
        let cosines: Vec<f32> = crossing::to_memory(&cosines)?;
        let mut by_logits = Vec::with_capacity(cosines.len());
        for (at, row) in cosines.chunks_exact(n_candidates).enumerate() {
            let own = group.first + from + at;
            for (other, &cosine) in row.iter().enumerate() {
                let sign = if group.belongs(own, other) { 1.0 } else { -1.0 };
                let cosine = f64::from(cosine);
                let logit = sign * (features.scale * cosine + features.bias);
                side.loss += softplus(-logit);
                let by_logit = -sign / (1.0 + logit.exp());
                side.by_scale += by_logit * cosine;
                side.by_bias += by_logit;
                by_logits.push((features.scale * by_logit) as f32);
            }
            side.hits += f64::from(u8::from(group.belongs(own, best[at] as usize)));
        }
        let by_logits = crossing::to_device(by_logits, (n, n_candidates), own.device())?;
        parts.push(by_logits.matmul(others)?);
    }
    side.rows = Tensor::cat(&parts, 0)?.to_dtype(DType::F32)?;
    Ok(side)
}

/// `ln(1 + exp x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_is_its_formula_and_does_not_overflow() {
        for x in [-3.0_f64, -0.5, 0.0, 2.0] {
            assert!((softplus(x) - (1.0 + x.exp()).ln()).abs() < 1e-12);
        }
        assert_eq!(softplus(1e4), 1e4);
        assert_eq!(softplus(-1e4), 0.0);
    }
}
