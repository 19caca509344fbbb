//! What stands on top of a model: projections, classifiers, scores.

use candle_core::{Result, Tensor};

use super::Config;
use crate::nn::{LayerNorm, Linear, gelu, unit_length};
use crate::weights::Init;
use crate::{Error, Weights};

/// LayerNorm of classifiers, PyTorch's default.
const CLASSIFIER_EPSILON: f64 = 1e-5;

/// LayerNorm of BERT's heads.
const BERT_EPSILON: f64 = 1e-12;

/// Contrastive scales start at 1 / 0.07.
const INITIAL_LOGIT_SCALE: f32 = 2.659_26;

/// Two projections into one space, and the logarithm of the factor of its similarities.
#[derive(Clone, Debug)]
pub struct Contrastive {
    text: Linear,
    image: Linear,
    logit_scale: Tensor,
}

impl Contrastive {
    fn load(weights: &Weights, names: [&str; 3], width: usize) -> crate::Result<Self> {
        let [text, image, scale] = names;
        let proj = |name| Linear::load_without_bias(weights, name, width, width);
        Ok(Self {
            text: proj(text)?,
            image: proj(image)?,
            logit_scale: weights.get(scale, &[], Init::Constant(INITIAL_LOGIT_SCALE))?,
        })
    }

    /// `(b, d) -> (b, d)`, of length one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn text(&self, x: &Tensor) -> Result<Tensor> {
        unit_length(&self.text.forward(x)?)
    }

    /// `(b, d) -> (b, d)`, of length one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn image(&self, x: &Tensor) -> Result<Tensor> {
        unit_length(&self.image.forward(x)?)
    }

    /// The factor of similarities, a scalar.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scale(&self) -> Result<Tensor> {
        self.logit_scale.exp()
    }
}

/// Linear, LayerNorm, GELU, Linear.
#[derive(Clone, Debug)]
pub struct Classifier {
    inner: Linear,
    norm: LayerNorm,
    outer: Linear,
    n_classes: usize,
}

impl Classifier {
    fn load(
        weights: &Weights,
        name: &str,
        width: usize,
        inner: usize,
        classes: usize,
    ) -> crate::Result<Self> {
        Ok(Self {
            inner: Linear::load(weights, &format!("{name}.0"), width, inner)?,
            norm: LayerNorm::load(weights, &format!("{name}.1"), inner, CLASSIFIER_EPSILON)?,
            outer: Linear::load(weights, &format!("{name}.3"), inner, classes)?,
            n_classes: classes,
        })
    }

    /// `(b, in) -> (b, classes)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.norm.forward(&self.inner.forward(x)?)?;
        self.outer.forward(&gelu(&inner)?)
    }

    /// How many classes it tells apart.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }
}

/// BERT's masked language modeling head; its decoder is not tied to the word embedding.
#[derive(Clone, Debug)]
pub struct MaskedLanguage {
    dense: Linear,
    norm: LayerNorm,
    decoder: Linear,
}

impl MaskedLanguage {
    fn load(weights: &Weights, name: &str, width: usize, vocabulary: usize) -> crate::Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let bias = weights.get(&part("bias"), &[vocabulary], Init::Zeros)?;
        let decoder = Linear::load_without_bias(weights, &part("decoder"), width, vocabulary)?;
        Ok(Self {
            dense: Linear::load(weights, &part("transform.dense"), width, width)?,
            norm: LayerNorm::load(weights, &part("transform.LayerNorm"), width, BERT_EPSILON)?,
            decoder: decoder.with_bias(bias),
        })
    }

    /// `(b, t, d) -> (b, t, vocabulary)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let transformed = self.dense.forward_gelu(x)?;
        self.decoder.forward(&self.norm.forward(&transformed)?)
    }
}

/// The heads that a checkpoint has. Asking for one it lacks is [`Error::NoHead`].
#[derive(Clone, Debug)]
pub struct Heads {
    pooler: Option<Linear>,
    contrastive: Option<Contrastive>,
    fused_contrastive: Option<Contrastive>,
    vqa: Option<Classifier>,
    nlvr2: Option<Classifier>,
    masked_language: Option<MaskedLanguage>,
    masked_image: Option<Linear>,
    matching: Option<Linear>,
    image_classes: Option<Linear>,
    file: std::path::PathBuf,
}

/// Answers of the published question answering head, for one that is drawn anew.
const PUBLISHED_ANSWERS: usize = 3129;

impl Heads {
    /// Loads every head that is there, or may be drawn anew.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &Config) -> crate::Result<Self> {
        let d = config.width;
        let classes = |name: &str, fresh: usize| match weights.shape(name) {
            Some(shape) => shape.first().copied().unwrap_or_default(),
            None => fresh,
        };
        let fresh = |name: &str| weights.fresh_classes(name);
        let linear = |name: &str, n: usize| {
            let is_there = weights.has(&format!("{name}.weight"));
            is_there
                .then(|| Linear::load(weights, name, d, n))
                .transpose()
        };
        let contrastive = |names: [&str; 3]| {
            let is_there = weights.has(names[0]) && weights.has(names[1]);
            is_there
                .then(|| Contrastive::load(weights, names, d))
                .transpose()
        };
        let classifier = |name: &str, inputs: usize, fresh: usize| {
            let n = classes(&format!("{name}.3.weight"), fresh);
            let is_there = weights.has(&format!("{name}."));
            is_there
                .then(|| Classifier::load(weights, name, inputs, 2 * d, n))
                .transpose()
        };
        let masked_language = weights
            .has("mlm_score.")
            .then(|| MaskedLanguage::load(weights, "mlm_score", d, config.vocabulary));
        Ok(Self {
            pooler: linear("pooler.dense", d)?,
            contrastive: contrastive(["ifm_text_proj.fc", "ifm_image_proj.fc", "logit_scale"])?,
            fused_contrastive: contrastive([
                "ifm_vl_text_proj.fc",
                "ifm_vl_image_proj.fc",
                "logit_vl_scale",
            ])?,
            vqa: classifier(
                "vqa_classifier",
                d,
                fresh("vqa_classifier").unwrap_or(PUBLISHED_ANSWERS),
            )?,
            nlvr2: classifier("nlvr2_classifier", 2 * d, 2)?,
            masked_language: masked_language.transpose()?,
            masked_image: linear(
                "mim_score",
                classes("mim_score.weight", fresh("mim_score").unwrap_or_default()),
            )?,
            matching: linear("itm_score.fc", 2)?,
            image_classes: linear(
                "img_cls_classifier",
                classes(
                    "img_cls_classifier.weight",
                    fresh("img_cls_classifier").unwrap_or_default(),
                ),
            )?,
            file: weights.checkpoint().path().to_owned(),
        })
    }

    /// A part that a checkpoint may lack.
    pub(super) fn need<'a, T>(
        &self,
        part: Option<&'a T>,
        what: &'static str,
        prefix: &'static str,
    ) -> crate::Result<&'a T> {
        part.ok_or_else(|| Error::NoHead {
            path: self.file.clone(),
            what,
            prefix,
        })
    }

    /// The pooler: dense and tanh on the first token, `(b, d) -> (b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when the device fails.
    pub fn pool(&self, first: &Tensor) -> crate::Result<Tensor> {
        let pooler = self.need(self.pooler.as_ref(), "pooler", "pooler.dense")?;
        Ok(pooler.forward(first)?.tanh()?)
    }

    /// Retrieval projections of text and image alone.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn contrastive(&self) -> crate::Result<&Contrastive> {
        self.need(
            self.contrastive.as_ref(),
            "retrieval projection",
            "ifm_text_proj",
        )
    }

    /// The same after the fusion blocks.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn fused_contrastive(&self) -> crate::Result<&Contrastive> {
        let head = self.fused_contrastive.as_ref();
        self.need(
            head,
            "retrieval projection of the fusion blocks",
            "ifm_vl_text_proj",
        )
    }

    /// Answers to questions.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn vqa(&self) -> crate::Result<&Classifier> {
        self.need(
            self.vqa.as_ref(),
            "question answering head",
            "vqa_classifier",
        )
    }

    /// True or false of two images.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn nlvr2(&self) -> crate::Result<&Classifier> {
        self.need(self.nlvr2.as_ref(), "NLVR2 head", "nlvr2_classifier")
    }

    /// Masked words.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn masked_language(&self) -> crate::Result<&MaskedLanguage> {
        let head = self.masked_language.as_ref();
        self.need(head, "masked language modeling head", "mlm_score")
    }

    /// Visual tokens of masked patches.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn masked_image(&self) -> crate::Result<&Linear> {
        let head = self.masked_image.as_ref();
        self.need(head, "masked image modeling head", "mim_score")
    }

    /// Whether text and image belong together: class 1.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn matching(&self) -> crate::Result<&Linear> {
        self.need(self.matching.as_ref(), "matching head", "itm_score")
    }

    /// Classes of images.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn image_classes(&self) -> crate::Result<&Linear> {
        let head = self.image_classes.as_ref();
        self.need(head, "image classification head", "img_cls_classifier")
    }
}
