//! Fine-tuning for retrieval.

use super::similarity::contrast;
use super::{Loss, Needs, Objective, Step};
use crate::Result;

/// Image-text contrast by the features of either modality alone.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval;

impl Objective for Retrieval {
    fn name(&self) -> &'static str {
        "retrieval"
    }

    fn needs(&self) -> Needs {
        Needs {
            image: true,
            text: true,
            ..Needs::default()
        }
    }

    fn heads(&self) -> &'static [&'static str] {
        &["ifm_text_proj", "ifm_image_proj", "logit_scale"]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (model, text) = (step.model, step.text()?);
        let omission = step.omission("retrieval.image");
        let image = model.image_features(step.image()?, &step.pass(&omission))?;
        let omission = step.omission("retrieval.text");
        let text = model.text_features(&text.ids, &text.mask, &step.pass(&omission))?;
        let scale = model.heads().contrastive()?.scale()?;
        let contrast = contrast(&image, &text, &scale, step)?;
        let n = step.batch.n as f64;
        Ok(Loss {
            value: contrast.value,
            reported: contrast.reported,
            measures: vec![
                ("retrieval_i2t_accuracy", contrast.images_hit, n),
                ("retrieval_t2i_accuracy", contrast.texts_hit, n),
            ],
        })
    }
}
