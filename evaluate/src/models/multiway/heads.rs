//! The heads of a multiway model, under the names of vl-merging.

use candle_core::Tensor;

use super::Config;
use super::blueprint::NAME;
use crate::models::Head;
use crate::models::heads::{Classifier, Contrastive, MaskedLanguage};
use crate::nn::Linear;
use crate::{Error, ModelFault, Weights};

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

/// Answers of the published question answering head; a fresh head has as many.
const PUBLISHED_ANSWERS: usize = 3129;

impl Heads {
    /// Loads every head that the checkpoint has, and every head that may start fresh.
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
            // A table of word embeddings may be padded without the head.
            .then(|| {
                let n = classes("mlm_score.bias", config.vocabulary);
                MaskedLanguage::load(weights, "mlm_score", d, n)
            });
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

    /// The part of a head, which a checkpoint may lack.
    fn of<'a, T>(&self, head: Head, part: &'a Option<T>) -> crate::Result<&'a T> {
        let prefix = prefixes(head).first().copied().unwrap_or_default();
        self.need(part.as_ref(), head.title(), prefix)
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
        self.of(Head::Contrastive, &self.contrastive)
    }

    /// The same after the fusion blocks.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn fused_contrastive(&self) -> crate::Result<&Contrastive> {
        self.of(Head::FusedContrastive, &self.fused_contrastive)
    }

    /// Answers to questions.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn vqa(&self) -> crate::Result<&Classifier> {
        self.of(Head::Vqa, &self.vqa)
    }

    /// True or false of two images.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn nlvr2(&self) -> crate::Result<&Classifier> {
        self.of(Head::Nlvr2, &self.nlvr2)
    }

    /// Masked words.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn masked_language(&self) -> crate::Result<&MaskedLanguage> {
        self.of(Head::MaskedLanguage, &self.masked_language)
    }

    /// Visual tokens of masked patches.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn masked_image(&self) -> crate::Result<&Linear> {
        self.of(Head::MaskedImage, &self.masked_image)
    }

    /// Whether text and image belong together: class 1.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn matching(&self) -> crate::Result<&Linear> {
        self.of(Head::Matching, &self.matching)
    }

    /// Classes of images.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn image_classes(&self) -> crate::Result<&Linear> {
        self.of(Head::ImageClasses, &self.image_classes)
    }

    /// The scores of a head for rows of hidden states.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when the device fails.
    pub fn score(&self, head: Head, x: &Tensor) -> crate::Result<Tensor> {
        Ok(match head {
            Head::Matching => self.matching()?.forward(x)?,
            Head::MaskedLanguage => self.masked_language()?.forward(x)?,
            Head::MaskedImage => self.masked_image()?.forward(x)?,
            Head::Vqa => self.vqa()?.forward(x)?,
            Head::Nlvr2 => self.nlvr2()?.forward(x)?,
            Head::ImageClasses => self.image_classes()?.forward(x)?,
            Head::Contrastive | Head::FusedContrastive | Head::Ranking | Head::CausalLanguage => {
                return Err(scores_nothing(head));
            }
        })
    }

    /// The number of classes that a head tells apart.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn n_classes(&self, head: Head) -> crate::Result<usize> {
        Ok(match head {
            Head::Vqa => self.vqa()?.n_classes(),
            Head::Nlvr2 => self.nlvr2()?.n_classes(),
            Head::Matching => self.matching()?.weight().dim(0)?,
            Head::MaskedImage => self.masked_image()?.weight().dim(0)?,
            Head::ImageClasses => self.image_classes()?.weight().dim(0)?,
            Head::MaskedLanguage => self.masked_language()?.vocabulary(),
            Head::Contrastive | Head::FusedContrastive | Head::Ranking | Head::CausalLanguage => {
                return Err(scores_nothing(head));
            }
        })
    }
}

/// Beginnings of the names of a head's weights; the first one is that of the weights that have its
/// classes.
pub(super) fn prefixes(head: Head) -> &'static [&'static str] {
    match head {
        Head::Contrastive => &["ifm_text_proj", "ifm_image_proj", "logit_scale"],
        Head::FusedContrastive => &["ifm_vl_text_proj", "ifm_vl_image_proj", "logit_vl_scale"],
        Head::Matching => &["itm_score"],
        Head::MaskedLanguage => &["mlm_score"],
        Head::MaskedImage => &["mim_score", "transformer.mask_token"],
        Head::Vqa => &["vqa_classifier", "pooler"],
        Head::Nlvr2 => &["nlvr2_classifier", "pooler"],
        Head::ImageClasses => &["img_cls_classifier"],
        Head::Ranking | Head::CausalLanguage => &[],
    }
}

/// The error for a head that multiway models do not have, or that gives features.
fn scores_nothing(head: Head) -> Error {
    Error::Model(ModelFault::Incapable {
        family: NAME,
        what: match head {
            Head::Ranking => "rank texts and images by a head of its own",
            Head::CausalLanguage => "write texts",
            _ => "score by a retrieval projection: it gives features",
        },
    })
}
