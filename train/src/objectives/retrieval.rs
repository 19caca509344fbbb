//! Fine-tuning for retrieval.

use evaluate::models::{Branch, Head, image_features, text_features};

use super::similarity::contrast;
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Image-text contrast by the features of either modality alone.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "retrieval",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Contrastive],
    after: &[],
    open: |_| Ok(Box::new(Retrieval)),
};

impl Objective for Retrieval {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (model, branch) = (step.model, Branch::Apart);
        let omission = step.omission("retrieval.image");
        let image = image_features(model, step.image()?, branch, &step.pass(&omission))?;
        let omission = step.omission("retrieval.text");
        let text = text_features(model, step.text()?, branch, &step.pass(&omission))?;
        let contrast = contrast(&image, &text, &model.dual()?.similarity(branch)?, step)?;
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
