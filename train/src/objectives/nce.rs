//! ZeroVL's contrast of images and texts, with or without mixing pairs.

use candle_core::Tensor;
use evaluate::models::{Branch, Head, image_features, text_features};
use serde::{Deserialize, Serialize};

use super::comparison::{Comparison, Mixed};
use super::feature_loss::{FeatureLoss, PairFeatures, in_one_part};
use super::{Loss, MixDraw, Needs, Objective, ObjectiveSpec, Step};
use crate::batch::{Batch, Images};
use crate::{Error, Result};

/// The settings by which `nce` and `mixup_nce` compare and mix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContrastSettings {
    /// Share of the target that is spread over all candidates (0).
    pub smoothing: f64,
    /// Whether features learn as candidates too, from the rows of all ranks (true).
    pub gather_backward: bool,
    /// Whether rows are compared with those of other ranks (true).
    pub global_reduce: bool,
    /// Ranks that are compared with one another (all).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Both numbers of the beta distribution that shares of mixed pairs are drawn from (0.1).
    pub beta: f64,
    /// Rows of a block within which the first is mixed with the last, and so on (`per_device_batch`, or a
    /// rank's share of the batch).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
}

impl Default for ContrastSettings {
    fn default() -> Self {
        Self {
            smoothing: 0.0,
            gather_backward: true,
            global_reduce: true,
            group_size: None,
            beta: 0.1,
            block: None,
        }
    }
}

impl ContrastSettings {
    /// Checks the settings; `part` is how many rows are computed at once.
    ///
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn check(&self, mixes: bool, part: usize) -> Result<()> {
        let bad = |key: &str, reason: String| {
            Err(Error::BadSetting {
                key: format!("objectives.contrast.{key}"),
                reason,
            })
        };
        if !(0.0..1.0).contains(&self.smoothing) {
            return bad("smoothing", format!("{} is not in [0, 1)", self.smoothing));
        }
        if !(self.beta > 0.0 && self.beta <= 1.0) {
            return bad("beta", format!("{} is not in (0, 1]", self.beta));
        }
        if self.group_size == Some(0) {
            return bad("group_size", "a group has at least one rank".into());
        }
        if mixes && !self.global_reduce {
            let reason = "mixed pairs are compared with those of all ranks; set it to true";
            return bad("global_reduce", reason.into());
        }
        match self.block {
            Some(block) if !mixes => bad(
                "block",
                format!("{block} rows of nothing: only `mixup_nce` mixes"),
            ),
            Some(block) if block == 0 || !part.is_multiple_of(block) => bad(
                "block",
                format!("{part} rows that are computed at once are no multiple of {block}"),
            ),
            _ => Ok(()),
        }
    }
}

/// Contrast of image and text features, the mean of the cross entropies both ways.
///
/// `mixup_nce` draws a share and a side for each step: either pictures are mixed with those from the other
/// end of their block, or the features of texts before they are brought to length one; the loss is mixed
/// alike.
///
/// Cui et al. 2022, "Contrastive vision-language pre-training with limited resources",
/// <https://arxiv.org/abs/2112.09331>.
#[derive(Clone, Copy, Debug)]
pub struct Nce {
    settings: ContrastSettings,
    /// Rows of a block, where pairs are mixed.
    block: Option<usize>,
}

impl Nce {
    /// Without mixing.
    #[must_use]
    pub fn plain(settings: ContrastSettings) -> Self {
        Self {
            settings,
            block: None,
        }
    }

    /// With pairs mixed within blocks of the settings, or else of the `part` that is computed at once.
    #[must_use]
    pub fn mixing(settings: ContrastSettings, part: usize) -> Self {
        Self {
            settings,
            block: Some(settings.block.unwrap_or(part).max(1)),
        }
    }

    /// The draws of a step.
    fn draw(&self, step: &Step<'_>) -> Option<(MixDraw, Mixed)> {
        let block = self.block?;
        let randomness = step.randomness?;
        let draw = randomness
            .mix
            .unwrap_or_else(|| MixDraw::of(randomness.seed, randomness.step, self.settings.beta));
        let alpha = draw.alpha;
        Some((draw, Mixed { alpha, block }))
    }
}

const NEEDS: Needs = Needs {
    image: true,
    text: true,
    ..Needs::NOTHING
};

/// The row of the table without mixing.
pub(super) const PLAIN: ObjectiveSpec = ObjectiveSpec {
    name: "nce",
    needs: NEEDS,
    heads: &[Head::Contrastive],
    after: &[],
    reads: &[
        "contrast.smoothing",
        "contrast.gather_backward",
        "contrast.global_reduce",
        "contrast.group_size",
    ],
    open: |opening| {
        let settings = opening.contrast.unwrap_or_default();
        settings.check(false, opening.part)?;
        Ok(Box::new(Nce::plain(settings)))
    },
};

/// The row of the table with mixing.
pub(super) const MIXING: ObjectiveSpec = ObjectiveSpec {
    name: "mixup_nce",
    needs: NEEDS,
    heads: &[Head::Contrastive],
    after: &[],
    reads: &["contrast"],
    open: |opening| {
        let settings = opening.contrast.unwrap_or_default();
        settings.check(true, opening.part)?;
        Ok(Box::new(Nce::mixing(settings, opening.part)))
    },
};

/// Each row with its partner.
fn mixed_rows(rows: &Tensor, mixed: Mixed) -> Result<Tensor> {
    let n = rows.dim(0)?;
    let partners = (0..n).map(|row| mixed.partner(row, n) as u32);
    let partners = Tensor::from_iter(partners, rows.device())?;
    let others = rows.index_select(&partners, 0)?;
    Ok(((rows * mixed.alpha)? + (others * (1.0 - mixed.alpha))?)?)
}

impl Objective for Nce {
    fn spec(&self) -> &'static ObjectiveSpec {
        match self.block {
            None => &PLAIN,
            Some(_) => &MIXING,
        }
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

impl FeatureLoss for Nce {
    fn features(&self, step: &Step<'_>) -> Result<Vec<PairFeatures>> {
        let (model, branch) = (step.model, Branch::Apart);
        let draw = self.draw(step);
        let ways = step.ways("nce.image");
        let pass = step.pass(&ways);
        let images = match draw {
            Some((draw, mixed)) if draw.mixes_images => {
                let pixels = mixed_rows(&step.image()?.pixels, mixed)?;
                image_features(model, &Images::new(pixels), branch, &pass)?
            }
            _ => image_features(model, step.image()?, branch, &pass)?,
        };
        let ways = step.ways("nce.text");
        let pass = step.pass(&ways);
        let texts = match draw {
            Some((draw, mixed)) if !draw.mixes_images => {
                let dual = model.dual()?;
                let projected = dual.text_projections(step.text()?, &pass)?;
                dual.unit(&mixed_rows(&projected, mixed)?)?
            }
            _ => text_features(model, step.text()?, branch, &pass)?,
        };
        Ok(vec![PairFeatures {
            branch,
            images,
            texts,
        }])
    }

    fn comparison(&self) -> Comparison {
        Comparison {
            smoothing: self.settings.smoothing,
            group: match self.settings.global_reduce {
                true => self.settings.group_size,
                false => Some(1),
            },
            // Where nothing is gathered, nothing is cut.
            learns_as_candidate: self.settings.gather_backward || !self.settings.global_reduce,
            ..Comparison::default()
        }
    }

    fn mixes(&self) -> bool {
        self.block.is_some()
    }

    fn mixed(&self, step: &Step<'_>) -> Option<Mixed> {
        self.draw(step).map(|(_, mixed)| mixed)
    }

    fn accuracies(&self) -> [&'static str; 2] {
        ["nce_i2t_accuracy", "nce_t2i_accuracy"]
    }
}
