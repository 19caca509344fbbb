//! Residual networks that classify pictures, as torchvision has them.
//!
//! He et al. 2016, "Deep Residual Learning for Image Recognition", <https://arxiv.org/abs/1512.03385>; with the stride in the
//! middle convolution of a bottleneck. Names are those of <https://github.com/pytorch/vision>.

mod block;
mod blueprint;
mod named;

use std::cell::RefCell;

use candle_core::{Result as DeviceResult, Tensor};

pub use blueprint::{Config, FAMILY, GROUPING};

use block::{Block, Convolved};
use blueprint::NAME;

use super::apart::{ImageClassifier, ImageHead};
use super::{BatchNormed, Head, Model, ModelInput};
use crate::batch::Images;
use crate::forward::NamedPasses;
use crate::nn::{BatchStatistics, Norming, Pass, relu};
use crate::{Result, Weights};

/// The name of the classifier, which reads the mean of the last map.
const HEAD: &str = "fc";

/// A residual network.
#[derive(Clone, Debug)]
pub struct Resnet {
    config: Config,
    stem: Convolved,
    blocks: Vec<Block>,
    head: ImageHead,
}

impl Resnet {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`], and when shapes are those of no residual network.
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let stem = Convolved::load(weights, ["conv1", "bn1"], 2)?;
        let mut blocks = Vec::new();
        for (stage, n_blocks) in config.n_blocks.into_iter().enumerate() {
            for block in 0..n_blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                blocks.push(Block::load(weights, &name, stride)?);
            }
        }
        Ok(Self {
            stem,
            head: ImageHead::load(weights, HEAD, config.width, true)?,
            blocks,
            config,
        })
    }

    /// The last map: `(b, 3, h, w) -> (b, d, h / 32, w / 32)`.
    fn features(&self, pixels: &Tensor, norming: Norming<'_>) -> DeviceResult<Tensor> {
        let x = relu(&self.stem.forward(pixels, norming)?)?;
        // No number is below zero, so that a border of zeros is never the largest.
        let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        let mut x = x.max_pool2d_with_stride(3, 2)?;
        for block in &self.blocks {
            x = block.forward(&x, norming)?;
        }
        Ok(x)
    }

    /// The classifier, the only head that scores.
    fn head(&self, head: Head) -> Result<&ImageClassifier> {
        let incapable = || self.cannot("score hidden states: it classifies pictures");
        self.head.of(head, incapable)
    }
}

/// The mean of a map: `(b, d, h, w) -> (b, d)`.
fn pooled(features: &Tensor) -> DeviceResult<Tensor> {
    features.flatten_from(2)?.mean(2)
}

impl Model for Resnet {
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

    fn pooled_image(&self, images: &Images, _: &Pass<'_>) -> Result<Tensor> {
        Ok(pooled(&self.features(&images.pixels, Norming::Kept)?)?)
    }

    /// The classifier alone has a gram matrix.
    fn pass_images(&self, images: &Images, pass: &Pass<'_>) -> Result<()> {
        let pooled = self.pooled_image(images, pass)?;
        self.head.pass(&pooled, pass)
    }

    fn batch_normed(&self) -> Result<&dyn BatchNormed> {
        Ok(self)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl BatchNormed for Resnet {
    fn observe(&self, images: &Images, statistics: &RefCell<BatchStatistics>) -> Result<()> {
        self.features(&images.pixels, Norming::Observed(statistics))?;
        Ok(())
    }
}
