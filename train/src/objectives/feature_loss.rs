//! Losses over the features of the whole batch, in whatever parts it is computed.

use candle_core::{DType, Tensor};
use evaluate::crossing;
use evaluate::models::{Branch, DualEncoder, image_features, text_features};
use evaluate::nn::Pass;

use super::comparison::{Comparison, Features, Mixed, compare};
use super::{Loss, Objective, PairSettings, Step};
use crate::Result;

/// Features of images and texts that belong together.
#[derive(Clone, Debug)]
pub struct PairFeatures {
    /// The branch of the features.
    pub branch: Branch,
    /// `(b, d)` of length one.
    pub images: Tensor,
    /// `(b, d)` of length one.
    pub texts: Tensor,
}

impl PairFeatures {
    /// Features of a batch's images and of its texts, apart, with a pass for each.
    ///
    /// # Errors
    /// When the model does not have them, or the device fails.
    pub(crate) fn apart(step: &Step<'_>, passes: [&Pass<'_>; 2]) -> Result<Self> {
        let (model, branch, [of_images, of_texts]) = (step.model, Branch::Apart, passes);
        Ok(Self {
            branch,
            images: image_features(model, step.image()?, branch, of_images)?,
            texts: text_features(model, step.text()?, branch, of_texts)?,
        })
    }

    /// The model's factor of similarities of this branch.
    pub(super) fn scale(&self, step: &Step<'_>) -> Result<f64> {
        let scale = step.model.dual()?.similarity(self.branch)?.scale;
        let scale = scale.detach().to_dtype(DType::F32)?;
        Ok(f64::from(crossing::number::<f32>(&scale)?))
    }

    /// The number that the model adds to similarities of this branch.
    fn bias(&self, step: &Step<'_>) -> Result<f64> {
        let bias = step.model.dual()?.similarity(self.branch)?.bias;
        let number = |bias: Tensor| crossing::number::<f32>(&bias.detach().to_dtype(DType::F32)?);
        Ok(f64::from(bias.map(number).transpose()?.unwrap_or(0.0)))
    }

    /// The same in f32, without a graph.
    ///
    /// # Errors
    /// When the device fails.
    pub fn detached(&self) -> Result<Self> {
        Ok(Self {
            branch: self.branch,
            images: self.images.detach().to_dtype(DType::F32)?,
            texts: self.texts.detach().to_dtype(DType::F32)?,
        })
    }

    /// Those of several parts in their order. The parts are let go side by side, so that never more than
    /// one side is in memory twice.
    ///
    /// # Errors
    /// When the device fails.
    pub fn joined(parts: Vec<Vec<Self>>) -> Result<Vec<Self>> {
        let mut branches: Vec<(Branch, [Vec<Tensor>; 2])> = Vec::new();
        for (number, pair) in parts
            .into_iter()
            .flat_map(|part| part.into_iter().enumerate())
        {
            if number == branches.len() {
                branches.push((pair.branch, [Vec::new(), Vec::new()]));
            }
            let (_, [images, texts]) = &mut branches[number];
            images.push(pair.images);
            texts.push(pair.texts);
        }
        let join = |(branch, [images, texts]): (Branch, [Vec<Tensor>; 2])| {
            let side = |parts: Vec<Tensor>| Tensor::cat(&parts, 0);
            Ok(Self {
                branch,
                images: side(images)?,
                texts: side(texts)?,
            })
        };
        branches.into_iter().map(join).collect()
    }
}

/// An objective whose loss sees features alone, those of the whole batch of all ranks.
///
/// The loop computes the features of all parts, then their loss and its gradients once, then each part
/// again, with the gradients by its features. So the memory of a part is enough for a batch of any size, and
/// the parts change nothing that is learned.
///
/// Cui et al. 2022, "Contrastive vision-language pre-training with limited resources",
/// <https://arxiv.org/abs/2112.09331>, section 3.2, decoupled gradient accumulation; Gao et al. 2021,
/// "Scaling deep contrastive learning batch size", <https://arxiv.org/abs/2101.06983>.
pub trait FeatureLoss: Objective {
    /// The features of a part, a pair for each branch.
    ///
    /// # Errors
    /// When the model does not have them, or the device fails.
    fn features(&self, step: &Step<'_>) -> Result<Vec<PairFeatures>>;

    /// The comparison of the features of a branch.
    fn comparison(&self) -> Comparison {
        Comparison::default()
    }

    /// The rule by which pairs belong together.
    fn pairs(&self) -> PairSettings {
        PairSettings::default()
    }

    /// Whether it mixes pairs.
    fn mixes(&self) -> bool {
        false
    }

    /// The mix of pairs of this step.
    fn mixed(&self, step: &Step<'_>) -> Option<Mixed> {
        let _ = step;
        None
    }

    /// The names of the shares of images and of texts that find their partner.
    fn accuracies(&self) -> [&'static str; 2];
}

/// Gradients of a loss by the features of all parts of this rank.
#[derive(Clone, Debug)]
pub struct FeatureGradients {
    /// The loss of this rank; averaged over the ranks, that of the whole batch.
    pub reported: f64,
    /// Further numbers, as in [`Loss::measures`].
    pub measures: Vec<(&'static str, f64, f64)>,
    branches: Vec<OfBranch>,
}

#[derive(Clone, Debug)]
struct OfBranch {
    images: Tensor,
    texts: Tensor,
    scale: f64,
    bias: f64,
}

impl FeatureGradients {
    /// The loss of `features`, those of all parts of this rank without a graph, and its gradients.
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub fn of(
        objective: &dyn FeatureLoss,
        features: &[PairFeatures],
        step: &Step<'_>,
    ) -> Result<Self> {
        let rules = objective.comparison();
        let share = 1.0 / features.len().max(1) as f64;
        let mut found = Self {
            reported: 0.0,
            measures: Vec::new(),
            branches: Vec::with_capacity(features.len()),
        };
        for pair in features {
            let input = Features {
                images: &pair.images,
                texts: &pair.texts,
                scale: pair.scale(step)?,
                bias: pair.bias(step)?,
                ignored: None,
                mixed: objective.mixed(step),
                same: objective.pairs().images(step.batch)?,
            };
            let compared = compare(&input, &rules, step.collective)?;
            found.reported += share * compared.loss();
            if found.measures.is_empty() {
                // A run logs the first of several branches, image and text alone.
                let [image, text] = objective.accuracies();
                found.measures = vec![
                    (image, compared.images_hit, compared.n_rows),
                    (text, compared.texts_hit, compared.n_rows),
                ];
            }
            found.branches.push(OfBranch {
                images: (compared.images * share)?,
                texts: (compared.texts * share)?,
                scale: share * compared.scale,
                bias: share * compared.bias,
            });
        }
        Ok(found)
    }

    /// The loss as one of `n_parts` parts gives it: averaged over the parts, the gradients are those of
    /// the loss. `features` are those of the part with their graphs; they begin at row `first` of this
    /// rank's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_part(
        &self,
        features: &[PairFeatures],
        first: usize,
        n_parts: usize,
        model: &dyn DualEncoder,
    ) -> Result<Loss> {
        Ok(Loss {
            value: (self.surrogate(features, first, model)? * n_parts as f64)?,
            reported: self.reported,
            measures: match first {
                0 => self.measures.clone(),
                _ => Vec::new(),
            },
        })
    }

    /// A scalar whose gradients are a part's share of those of the loss.
    fn surrogate(
        &self,
        features: &[PairFeatures],
        first: usize,
        model: &dyn DualEncoder,
    ) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (pair, of) in features.iter().zip(&self.branches) {
            let n = pair.images.dim(0)?;
            let dot = |features: &Tensor, gradient: &Tensor| {
                let gradient = gradient.narrow(0, first, n)?;
                (features.to_dtype(DType::F32)? * gradient)?.sum_all()
            };
            let by_features = (dot(&pair.images, &of.images)? + dot(&pair.texts, &of.texts)?)?;
            let part = n as f64 / of.images.dim(0)? as f64;
            let similarity = model.similarity(pair.branch)?;
            let number = |of: Tensor| of.to_dtype(DType::F32)?.reshape(());
            let by_scale = (number(similarity.scale)? * (of.scale * part))?;
            let mut value = (by_features + by_scale)?;
            if let (Some(bias), true) = (similarity.bias, of.bias != 0.0) {
                value = (value + (number(bias)? * (of.bias * part))?)?;
            }
            sum = Some(match sum {
                Some(sum) => (sum + value)?,
                None => value,
            });
        }
        sum.ok_or(crate::Error::NotInBatch { what: "features" })
    }
}

/// The loss of a batch that is computed in one part.
///
/// # Errors
/// As [`Objective::loss`].
pub fn in_one_part(objective: &dyn FeatureLoss, step: &Step<'_>) -> Result<Loss> {
    let features = objective.features(step)?;
    let detached: Vec<PairFeatures> = features
        .iter()
        .map(PairFeatures::detached)
        .collect::<Result<_>>()?;
    let gradients = FeatureGradients::of(objective, &detached, step)?;
    step.shared.features.replace(detached.first().cloned());
    gradients.of_part(&features, 0, 1, step.model.dual()?)
}
