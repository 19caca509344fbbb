//! Classes of images.

use evaluate::nn::cross_entropy;

use super::{Loss, Needs, Objective, Step};
use crate::Result;

/// The class of an image, from the mean of its tokens after the last norm.
#[derive(Clone, Copy, Debug)]
pub struct ImageClassification;

impl Objective for ImageClassification {
    fn name(&self) -> &'static str {
        "image_classification"
    }

    fn needs(&self) -> Needs {
        Needs {
            image: true,
            ..Needs::default()
        }
    }

    fn heads(&self) -> &'static [&'static str] {
        &["img_cls_classifier"]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let omission = step.omission("image_classification");
        let hidden = step
            .model
            .image(step.image()?, None, &step.pass(&omission))?;
        let mean = step.model.normed(&hidden)?.mean(1)?; // (b, d)
        let logits = step.model.heads().image_classes()?.forward(&mean)?;
        let classes = step.classes()?;
        let n_right = super::n_right(&logits, classes)?;
        let measures = vec![("image_accuracy", n_right, step.batch.n as f64)];
        Loss::mean(cross_entropy(&logits, classes)?, measures)
    }
}
