//! Classes of images.

use evaluate::models::Head;
use evaluate::nn::{cross_entropy, n_right};

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// The class of an image, from what its tower makes of it as a whole; the tower learns too.
#[derive(Clone, Copy, Debug)]
pub struct ImageClassification;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "image_classification",
    needs: Needs {
        image: true,
        ..Needs::NOTHING
    },
    heads: &[Head::ImageClasses],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(ImageClassification)),
};

impl Objective for ImageClassification {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let ways = step.ways("image_classification");
        let (model, pass) = (step.model, step.pass(&ways));
        let states = model.pooled_image(step.image()?, &pass)?;
        let logits = model.score(Head::ImageClasses, &states)?;
        let classes = step.classes()?;
        let n_right = n_right(&logits, classes)?;
        let measures = vec![("image_accuracy", n_right, step.batch.n as f64)];
        Loss::mean(cross_entropy(&logits, classes)?, measures)
    }
}
