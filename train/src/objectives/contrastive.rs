//! Image-text contrast (ITC), with the second heads of the fusion blocks.

use evaluate::models::Head;

use super::similarity::contrast;
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Image-text contrast of pre-training: the mean of the losses by each branch of the model's
/// features. A multiway model has two: those of either modality alone, and those after the fusion
/// blocks' vision-language experts.
///
/// Bao et al. 2021, "VLMo", <https://arxiv.org/abs/2111.02358>, section 3.3; Radford et al. 2021,
/// "CLIP", <https://arxiv.org/abs/2103.00020>.
#[derive(Clone, Copy, Debug)]
pub struct Contrastive;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "itc",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Contrastive, Head::FusedContrastive],
    after: &[],
    open: |_| Ok(Box::new(Contrastive)),
};

impl Objective for Contrastive {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let model = step.model.dual()?;
        let branches = model.branches();
        let omission = step.omission("itc.image");
        let images = model.image_features(step.image()?, branches, &step.pass(&omission))?;
        let omission = step.omission("itc.text");
        let texts = model.text_features(step.text()?, branches, &step.pass(&omission))?;
        let share = 1.0 / branches.len() as f64;
        let n = step.batch.n as f64;
        let mut loss: Option<Loss> = None;
        for ((&branch, image), text) in branches.iter().zip(&images).zip(&texts) {
            let found = contrast(image, text, &model.similarity(branch)?, step)?;
            loss = Some(match loss {
                // The numbers beside the loss are those of image and text alone, which come first.
                None => {
                    step.shared.similarities.replace(Some(found.similarities));
                    Loss {
                        value: found.value,
                        reported: found.reported,
                        measures: vec![
                            ("itc_i2t_accuracy", found.images_hit, n),
                            ("itc_t2i_accuracy", found.texts_hit, n),
                        ],
                    }
                }
                Some(loss) => Loss {
                    value: (loss.value + found.value)?,
                    reported: loss.reported + found.reported,
                    ..loss
                },
            });
        }
        let loss = loss.ok_or_else(|| step.model.cannot("contrast images with texts"))?;
        Ok(Loss {
            value: (loss.value * share)?,
            reported: loss.reported * share,
            ..loss
        })
    }
}
