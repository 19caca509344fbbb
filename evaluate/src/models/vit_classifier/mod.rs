//! Vision transformers that classify pictures, as timm has them.
//!
//! Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", <https://arxiv.org/abs/2010.11929>; with registers: Darcet et
//! al. 2023, <https://arxiv.org/abs/2309.16588>. Names are those of
//! <https://github.com/huggingface/pytorch-image-models>.

mod blueprint;
mod config;
mod named;

use candle_core::Tensor;
use merge::layouts::VitPool;

pub use blueprint::{FAMILY, GROUPING};
pub use config::Config;
pub(super) use config::image_input;

use blueprint::NAME;

use super::apart::{ImageClassifier, ImageHead};
use super::towers::Vit;
use super::{Head, Model, ModelInput};
use crate::batch::Images;
use crate::forward::NamedPasses;
use crate::nn::{LayerNorm, Pass};
use crate::{Result, Weights};

/// The name of the classifier, which reads pooled tokens.
const HEAD: &str = "head";

/// The name of the norm of pooled tokens.
const POOLED_NORM: &str = "fc_norm";

/// A classifier.
#[derive(Clone, Debug)]
pub struct VitClassifier {
    config: Config,
    tower: Vit,
    pooled_norm: Option<LayerNorm>,
    head: ImageHead,
}

impl VitClassifier {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let (width, epsilon) = (config.tower.width, config.tower.epsilon);
        let norm = || LayerNorm::load(weights, POOLED_NORM, width, epsilon);
        Ok(Self {
            tower: Vit::load(weights, "", config.tower.clone())?,
            pooled_norm: config.has_pooled_norm.then(norm).transpose()?,
            head: ImageHead::load(weights, HEAD, width, true)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The classifier, the only head that scores.
    fn head(&self, head: Head) -> Result<&ImageClassifier> {
        let incapable = || self.cannot("score hidden states: it classifies pictures");
        self.head.of(head, incapable)
    }
}

impl Model for VitClassifier {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        Ok(self.head(head)?.linear.forward(x)?)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        Ok(self.head(head)?.n_classes)
    }

    /// The class token, or the mean of the patches; then the norm of it, where there is one.
    fn pooled_image(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        let pooled = match self.config.pool {
            VitPool::Token => self.tower.class(&images.pixels, pass)?,
            VitPool::Mean => {
                let tokens = self.tower.tokens(&images.pixels, pass)?;
                let n_first = self.config.tower.n_first();
                tokens
                    .narrow(1, n_first, tokens.dim(1)? - n_first)?
                    .mean(1)?
            }
        };
        let pooled = match &self.pooled_norm {
            Some(norm) => norm.forward(&pooled)?,
            None => pooled,
        };
        pass.show_output(format_args!("pooled"), || Ok(pooled.clone()))?;
        Ok(pooled)
    }

    /// The classifier has a gram matrix too.
    fn pass_images(&self, images: &Images, pass: &Pass<'_>) -> Result<()> {
        let pooled = self.pooled_image(images, pass)?;
        self.head.pass(&pooled, pass)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}
