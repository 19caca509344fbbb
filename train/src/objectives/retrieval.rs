//! Fine-tuning for retrieval.

use evaluate::models::Head;

use super::feature_loss::{FeatureLoss, PairFeatures, in_one_part};
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;
use crate::batch::Batch;

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
    reads: &[],
    open: |_| Ok(Box::new(Retrieval)),
};

impl Objective for Retrieval {
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

impl FeatureLoss for Retrieval {
    fn features(&self, step: &Step<'_>) -> Result<Vec<PairFeatures>> {
        let ways = ["retrieval.image", "retrieval.text"].map(|name| step.ways(name));
        let passes = [step.pass(&ways[0]), step.pass(&ways[1])];
        let features = PairFeatures::apart(step, [&passes[0], &passes[1]])?;
        Ok(vec![features])
    }

    fn accuracies(&self) -> [&'static str; 2] {
        ["retrieval_i2t_accuracy", "retrieval_t2i_accuracy"]
    }
}
