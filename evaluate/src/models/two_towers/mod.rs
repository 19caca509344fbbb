//! Two towers that meet in one space: ZeroVL, a ViT for images and a BERT for texts.
//!
//! Cui et al. 2022, "Contrastive Vision-Language Pre-training with Limited Resources",
//! <https://arxiv.org/abs/2112.09331>. Reference, whose names these are:
//! <https://github.com/zerovl/ZeroVL>.

mod blueprint;
mod config;
mod named;

use candle_core::{DType, Tensor};

pub use blueprint::{FAMILY, GROUPING};
pub use config::{Config, Temperature};

use blueprint::NAME;
use config::{BOUNDS, IMAGE, PROBE, PROJECTIONS, TEMPERATURE, TEXT};

use super::apart::{self, ImageClassifier, ImageHead, check_branch, finite, for_branches, scalar};
use super::towers::{Bert, Vit};
use super::{Branch, DualEncoder, Head, Model, ModelInput, Similarity};
use crate::batch::{Images, Texts};
use crate::forward::NamedPasses;
use crate::nn::{Linear, Mask, Pass, unit_length_with};
use crate::weights::Init;
use crate::{Result, Weights};

/// The number added to a length before it divides.
const EPSILON: f64 = 1e-8;

/// The first value of a fresh temperature, as published.
const INITIAL_TEMPERATURE: f32 = 0.02;

/// BERT hides padding by the lowest number.
const HIDDEN: f32 = f32::MIN;

/// An image tower and a text tower, each with a projection into the joint space.
#[derive(Clone, Debug)]
pub struct TwoTowers {
    config: Config,
    image: Vit,
    text: Bert,
    image_projection: Linear,
    text_projection: Linear,
    /// The divisor itself, where it is learned.
    temperature: Option<Tensor>,
    /// The linear probe on the class token, where one was trained.
    probe: ImageHead,
}

impl TwoTowers {
    /// Loads every part.
    ///
    /// # Errors
    /// As [`Weights::get`]; [`ModelFault::BadNumber`](crate::ModelFault::BadNumber) when a learned temperature is no number.
    pub fn load(weights: &Weights, config: Config) -> Result<Self> {
        let joint = config.joint_width;
        let projection = |name: &str, width| Linear::load_without_bias(weights, name, width, joint);
        let initial = Init::Constant(INITIAL_TEMPERATURE);
        let temperature = match config.temperature {
            Temperature::Learned => Some(finite(
                weights,
                TEMPERATURE,
                weights.get(TEMPERATURE, &[], initial)?,
            )?),
            Temperature::Constant(_) => None,
        };
        Ok(Self {
            image: Vit::load(weights, IMAGE, config.image.clone())?,
            text: Bert::load(weights, TEXT, config.text.clone())?,
            image_projection: projection(PROJECTIONS[0], config.image.width)?,
            text_projection: projection(PROJECTIONS[1], config.text.width)?,
            temperature,
            probe: ImageHead::load(weights, PROBE, config.image.width, true)?,
            config,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Similarities are divided by this, a scalar in f32 within [0.001, 0.5]. Outside of these bounds
    /// no gradient reaches the parameter.
    ///
    /// # Errors
    /// When the device fails.
    pub fn temperature(&self) -> Result<Tensor> {
        let temperature = match (&self.temperature, self.config.temperature) {
            (Some(temperature), _) => scalar(temperature)?,
            (None, Temperature::Constant(constant)) => {
                let device = self.image_projection.weight().device();
                Tensor::new(constant as f32, device)?
            }
            (None, Temperature::Learned) => return Err(self.cannot("give a temperature")),
        };
        let value = temperature.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let [low, high] = BOUNDS;
        // candle halves the gradient of `clamp` at the bounds, where torch gives all of it.
        match (f64::from(low as f32)..=f64::from(high as f32)).contains(&value) {
            true => Ok(temperature),
            false => Ok(temperature.clamp(low, high)?),
        }
    }
}

/// The task of a head that the model lacks, as a verb phrase.
fn no_head(head: Head) -> &'static str {
    match head {
        Head::Vqa => "answer questions",
        Head::Nlvr2 => "judge statements about two images",
        Head::Matching | Head::Ranking => "match texts with images in one pass",
        Head::MaskedLanguage | Head::CausalLanguage => "predict words",
        Head::MaskedImage => "predict patches",
        _ => "classify hidden states",
    }
}

/// BERT's mask of a batch.
fn padding(texts: &Texts) -> Result<Mask> {
    Ok(Mask::padding(&texts.kept, HIDDEN)?)
}

/// `(b, w) -> (b, d)`.
fn project(linear: &Linear, name: &str, class: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    pass.show_output(format_args!("feature"), || Ok(class.clone()))?;
    let projected = apart::project(linear, name, class, pass)?;
    pass.show_output(format_args!("projection"), || Ok(projected.clone()))?;
    Ok(projected)
}

impl Model for TwoTowers {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        Ok(self.probe(head)?.linear.forward(x)?)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        Ok(self.probe(head)?.n_classes)
    }

    fn dual(&self) -> Result<&dyn DualEncoder> {
        Ok(self)
    }

    /// The projection has a gram matrix too.
    fn pass_images(&self, images: &Images, pass: &Pass<'_>) -> Result<()> {
        self.image_projections(images, pass).map(drop)
    }

    /// The class token after the last norm, not projected.
    fn pooled_image(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        self.image.class(&images.pixels, &pass.within("image"))
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl DualEncoder for TwoTowers {
    fn image_projections(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        let pass = pass.within("image");
        let class = self.image.class(&images.pixels, &pass)?;
        project(&self.image_projection, PROJECTIONS[0], &class, &pass)
    }

    fn text_projections(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        let (pass, mask) = (pass.within("text"), padding(texts)?);
        let class = self.text.class(&texts.ids, &mask, &pass)?;
        project(&self.text_projection, PROJECTIONS[1], &class, &pass)
    }

    /// `z / (‖z‖ + 1e-8)`.
    fn unit(&self, projections: &Tensor) -> Result<Tensor> {
        Ok(unit_length_with(projections, EPSILON)?)
    }

    fn image_features(
        &self,
        images: &Images,
        of: &[Branch],
        pass: &Pass<'_>,
    ) -> Result<Vec<Tensor>> {
        for_branches(self, of, || {
            let unit = self.unit(&self.image_projections(images, pass)?)?;
            let shown = pass.within("image");
            shown.show_output(format_args!("embedding"), || Ok(unit.clone()))?;
            Ok(unit)
        })
    }

    fn text_features(&self, texts: &Texts, of: &[Branch], pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        for_branches(self, of, || {
            let unit = self.unit(&self.text_projections(texts, pass)?)?;
            let shown = pass.within("text");
            shown.show_output(format_args!("embedding"), || Ok(unit.clone()))?;
            Ok(unit)
        })
    }

    fn similarity(&self, of: Branch) -> Result<Similarity> {
        check_branch(self, of)?;
        Ok(Similarity {
            scale: self.temperature()?.recip()?,
            bias: None,
        })
    }

    fn image_states(
        &self,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        match masked {
            None => self.image.tokens(&images.pixels, &pass.within("image")),
            Some(_) => Err(self.cannot("hide patches")),
        }
    }

    fn pass_texts(&self, texts: &Texts, pass: &Pass<'_>) -> Result<()> {
        self.text_projections(texts, pass).map(drop)
    }

    fn text_states(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        let (pass, mask) = (pass.within("text"), padding(texts)?);
        self.text.tokens(&texts.ids, &mask, &pass)
    }
}

impl TwoTowers {
    /// The classifier of images, the only head that scores.
    fn probe(&self, head: Head) -> Result<&ImageClassifier> {
        self.probe.of(head, || self.cannot(no_head(head)))
    }
}
