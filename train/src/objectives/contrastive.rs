//! Image-text contrast (ITC), with the second heads of the fusion blocks.

use super::similarity::contrast;
use super::{Loss, Needs, Objective, Step};
use crate::Result;

/// Image-text contrast of pre-training: the mean of the losses by the features of either modality
/// alone and by those after the fusion blocks' vision-language experts.
///
/// Bao et al. 2021, "VLMo", <https://arxiv.org/abs/2111.02358>, section 3.3; Radford et al. 2021,
/// "CLIP", <https://arxiv.org/abs/2103.00020>.
#[derive(Clone, Copy, Debug)]
pub struct Contrastive;

impl Objective for Contrastive {
    fn name(&self) -> &'static str {
        "itc"
    }

    fn needs(&self) -> Needs {
        Needs {
            image: true,
            text: true,
            ..Needs::default()
        }
    }

    fn heads(&self) -> &'static [&'static str] {
        &["ifm_", "logit_scale", "logit_vl_scale"]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (model, text) = (step.model, step.text()?);
        let omission = step.omission("itc.image");
        let [image, fused_image] =
            model.both_image_features(step.image()?, &step.pass(&omission))?;
        let omission = step.omission("itc.text");
        let pass = step.pass(&omission);
        let [text, fused_text] = model.both_text_features(&text.ids, &text.mask, &pass)?;
        let heads = model.heads();
        let alone = contrast(&image, &text, &heads.contrastive()?.scale()?, step)?;
        let scale = heads.fused_contrastive()?.scale()?;
        let fused = contrast(&fused_image, &fused_text, &scale, step)?;
        step.shared.similarities.replace(Some(alone.similarities));
        let n = step.batch.n as f64;
        Ok(Loss {
            value: ((alone.value + fused.value)? * 0.5)?,
            reported: 0.5 * (alone.reported + fused.reported),
            measures: vec![
                ("itc_i2t_accuracy", alone.images_hit, n),
                ("itc_t2i_accuracy", alone.texts_hit, n),
            ],
        })
    }
}
