//! CLIP and SigLIP: an image tower and a text tower that meet in one space.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
//! <https://arxiv.org/abs/2103.00020>; Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training",
//! <https://arxiv.org/abs/2303.15343>. Names are those of transformers; checkpoints in open_clip's spelling are read
//! through [`merge::layouts::clip`].

mod block;
mod blueprint;
mod config;
mod image;
mod named;
mod text;

use candle_core::Tensor;

pub use blueprint::{FAMILY, GROUPING};
pub use config::{Config, Tower, image_input};
pub use text::pooled_rows;

use blueprint::NAME;
use image::ImageTower;
use text::TextTower;

use super::apart::{
    ImageClassifier, ImageHead, check_branch, finite, for_branches, project, scalar,
};
use super::{Branch, DualEncoder, Head, Model, ModelInput, Similarity};
use crate::batch::{Images, Texts};
use crate::forward::NamedPasses;
use crate::nn::{Linear, Pass, unit_length};
use crate::weights::Init;
use crate::{Result, Weights};

/// The projections of images and of texts: those of a CLIP, and that of a SigLIP's texts.
const PROJECTIONS: [&str; 3] = ["visual_projection", "text_projection", "text_model.head"];

/// The logarithm of the factor of similarities.
const SCALE: &str = "logit_scale";

/// The number added to similarities.
const BIAS: &str = "logit_bias";

/// A classifier of images on their features.
const CLASSIFIER: &str = "classifier";

/// The first value of a fresh factor: the logarithm of 1 / 0.07.
const INITIAL_SCALE: f32 = 2.6592;

/// A CLIP or a SigLIP.
#[derive(Clone, Debug)]
pub struct Clip {
    config: Config,
    image: ImageTower,
    text: TextTower,
    /// A SigLIP has none: its pooled images are in the joint space.
    image_projection: Option<Linear>,
    text_projection: Linear,
    /// The logarithm of the factor, a single number.
    scale: Tensor,
    bias: Option<Tensor>,
    /// On features of length one.
    classifier: ImageHead,
}

impl Clip {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`]; [`ModelFault::BadNumber`](crate::ModelFault::BadNumber) when the factor of similarities is no number.
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let joint = config.joint_width;
        let [of_image, of_text, head] = PROJECTIONS;
        let (image, text) = (config.image.width, config.text.width);
        let shape: &[usize] = if config.is_siglip { &[1] } else { &[] };
        let scale = weights.get(SCALE, shape, Init::Constant(INITIAL_SCALE))?;
        let bias = || {
            let shape = weights.shape(BIAS).unwrap_or(shape).to_vec();
            weights.get(BIAS, &shape, Init::Zeros)
        };
        Ok(Self {
            image: ImageTower::load(weights, &config)?,
            text: TextTower::load(weights, &config)?,
            image_projection: match config.is_siglip {
                true => None,
                false => Some(Linear::load_without_bias(weights, of_image, image, joint)?),
            },
            text_projection: match config.is_siglip {
                true => Linear::load(weights, head, text, joint)?,
                false => Linear::load_without_bias(weights, of_text, text, joint)?,
            },
            scale: finite(weights, SCALE, scale)?,
            bias: config.has_bias.then(bias).transpose()?,
            classifier: ImageHead::load(weights, CLASSIFIER, joint, false)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Texts before they are scaled to length one. Published models leave padding in.
    fn projected_texts(
        &self,
        texts: &Texts,
        hides_padding: bool,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let pass = pass.within("text");
        let pooled = self.text.pooled(texts, hides_padding, &pass)?;
        let name = PROJECTIONS[if self.config.is_siglip { 2 } else { 1 }];
        let projected = project(&self.text_projection, name, &pooled, &pass)?;
        let pooled = match self.config.is_siglip {
            true => &projected,
            false => &pooled,
        };
        pass.show_output(format_args!("pooled"), || Ok(pooled.clone()))?;
        pass.show_output(format_args!("projected"), || Ok(projected.clone()))?;
        Ok(projected)
    }

    /// The classifier of images, the only head that scores.
    fn classifier(&self, head: Head) -> Result<&ImageClassifier> {
        let incapable = || self.cannot("score hidden states: it compares images with texts");
        self.classifier.of(head, incapable)
    }
}

impl Model for Clip {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        Ok(self.classifier(head)?.linear.forward(x)?)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        Ok(self.classifier(head)?.n_classes)
    }

    fn dual(&self) -> Result<&dyn DualEncoder> {
        Ok(self)
    }

    /// The feature, of length one: a classifier whose rows are features of class names is a zero-shot head.
    fn pooled_image(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        self.unit(&self.image_projections(images, pass)?)
    }

    /// The projection has a gram matrix too.
    fn pass_images(&self, images: &Images, pass: &Pass<'_>) -> Result<()> {
        self.image_projections(images, pass).map(drop)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl DualEncoder for Clip {
    fn image_projections(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        let pass = pass.within("vision");
        let pooled = self.image.pooled(&images.pixels, &pass)?;
        let Some(projection) = &self.image_projection else {
            return Ok(pooled);
        };
        let projected = project(projection, PROJECTIONS[0], &pooled, &pass)?;
        pass.show_output(format_args!("projected"), || Ok(projected.clone()))?;
        Ok(projected)
    }

    fn text_projections(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        self.projected_texts(texts, false, pass)
    }

    /// `z / ‖z‖`.
    fn unit(&self, projections: &Tensor) -> Result<Tensor> {
        Ok(unit_length(projections)?)
    }

    fn image_features(
        &self,
        images: &Images,
        of: &[Branch],
        pass: &Pass<'_>,
    ) -> Result<Vec<Tensor>> {
        for_branches(self, of, || {
            self.unit(&self.image_projections(images, pass)?)
        })
    }

    fn text_features(&self, texts: &Texts, of: &[Branch], pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        for_branches(self, of, || self.unit(&self.text_projections(texts, pass)?))
    }

    fn similarity(&self, of: Branch) -> Result<Similarity> {
        check_branch(self, of)?;
        Ok(Similarity {
            scale: scalar(&self.scale)?.exp()?,
            bias: self.bias.as_ref().map(scalar).transpose()?,
        })
    }

    fn image_states(
        &self,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        match masked {
            None => self.image.tokens(&images.pixels, &pass.within("vision")),
            Some(_) => Err(self.cannot("hide patches")),
        }
    }

    fn pass_texts(&self, texts: &Texts, pass: &Pass<'_>) -> Result<()> {
        self.text_projections(texts, pass).map(drop)
    }

    fn text_states(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        self.text.tokens(texts, false, &pass.within("text"))
    }
}
