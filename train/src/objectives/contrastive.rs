//! Image-text contrast (ITC), with the second heads of the fusion blocks.

use evaluate::models::Head;

use super::feature_loss::{FeatureLoss, PairFeatures, in_one_part};
use super::{Comparison, Loss, Needs, Objective, ObjectiveSpec, PairSettings, Step};
use crate::Result;
use crate::batch::Batch;

/// Image-text contrast of pre-training: the mean of the losses by each branch of the model's
/// features. A multiway model has two: those of either modality alone, and those after the fusion
/// blocks' vision-language experts.
///
/// Bao et al. 2021, "VLMo", <https://arxiv.org/abs/2111.02358>, section 3.3; Radford et al. 2021,
/// "CLIP", <https://arxiv.org/abs/2103.00020>.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contrastive {
    /// The rule by which texts belong to an image.
    pub pairs: PairSettings,
}

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
    reads: &["pairs"],
    open: |opening| {
        let pairs = opening.pairs()?;
        Ok(Box::new(Contrastive { pairs }))
    },
};

impl Objective for Contrastive {
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

impl FeatureLoss for Contrastive {
    fn features(&self, step: &Step<'_>) -> Result<Vec<PairFeatures>> {
        let model = step.model.dual()?;
        let branches = model.branches();
        let ways = step.ways("itc.image");
        let images = model.image_features(step.image()?, branches, &step.pass(&ways))?;
        let ways = step.ways("itc.text");
        let texts = model.text_features(step.text()?, branches, &step.pass(&ways))?;
        let pairs = branches.iter().zip(images).zip(texts);
        Ok(pairs
            .map(|((&branch, images), texts)| PairFeatures {
                branch,
                images,
                texts,
            })
            .collect())
    }

    fn comparison(&self) -> Comparison {
        Comparison {
            shares_gradient: self.pairs.as_published,
            ..Comparison::default()
        }
    }

    fn pairs(&self) -> PairSettings {
        self.pairs
    }

    fn accuracies(&self) -> [&'static str; 2] {
        ["itc_i2t_accuracy", "itc_t2i_accuracy"]
    }
}
