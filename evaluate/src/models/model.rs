//! The traits through which the rest of the program sees a model. No family's own words appear here.

use std::cell::RefCell;

use candle_core::{DType, Tensor};

use super::{FreeLanguage, Head, ModelInput};
use crate::batch::{Images, Pair, Texts};
use crate::forward::NamedPasses;
use crate::nn::{BatchStatistics, Pass};
use crate::{Error, ModelFault, Result};

/// A model of any family, with its capabilities. A family implements the capabilities that it has;
/// asking for another one is an error that names the family.
pub trait Model: Send + Sync {
    /// The family that it belongs to, such as `multiway`.
    fn family(&self) -> &'static str;

    /// Pixels and tokens that it takes.
    fn input(&self) -> &ModelInput;

    /// The scores of a head for rows of hidden states: `(.., d) -> (.., classes)`, where `d` is the width of the head's
    /// input (see [`FusionEncoder::pooled`] and the states of the encoders).
    ///
    /// # Errors
    /// [`Error::NoHead`] when the checkpoint lacks the head, or when the device fails.
    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor>;

    /// The number of classes that a head tells apart.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    fn n_classes(&self, head: Head) -> Result<usize>;

    /// Whether the numbers of an example depend on what else is in its batch. Tasks then make up batches as the published
    /// program does.
    fn is_swayed_by_batch(&self) -> bool {
        false
    }

    /// The model as one that encodes images and texts apart.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family does not.
    fn dual(&self) -> Result<&dyn DualEncoder> {
        Err(self.cannot("encode images and texts apart"))
    }

    /// The model as one that reads texts together with images.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family does not.
    fn fusion(&self) -> Result<&dyn FusionEncoder> {
        Err(self.cannot("read texts together with images"))
    }

    /// The model as one that writes texts.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family does not.
    fn captioner(&self) -> Result<&dyn Captioner> {
        Err(self.cannot("write captions"))
    }

    /// The model as one that reads texts in either direction and completes them from both.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family does not.
    fn free_language(&self) -> Result<&dyn FreeLanguage> {
        Err(self.cannot("complete texts from both directions"))
    }

    /// The input of a classifier of images ([`Head::ImageClasses`]), `(b, d)`.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family has no such classifier, and when shapes do not fit or the device
    /// fails.
    fn pooled_image(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        let _ = (images, pass);
        Err(self.cannot("classify images"))
    }

    /// Runs images through every linear layer that has a gram matrix and sees images alone, for a tap that looks
    /// on.
    ///
    /// # Errors
    /// As [`DualEncoder::image_states`].
    fn pass_images(&self, images: &Images, pass: &Pass<'_>) -> Result<()> {
        self.dual()?.image_states(images, None, pass).map(drop)
    }

    /// The model as one with batch norms, whose statistics may be taken again.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family has none.
    fn batch_normed(&self) -> Result<&dyn BatchNormed> {
        Err(self.cannot("take statistics of batch norms: it has none"))
    }

    /// The passes that the model can run on given tensors, by name (`vlmerge forward`).
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family names none.
    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Err(self.cannot("run named passes on given tensors"))
    }

    /// The error for what the family cannot do: `what` is a verb phrase.
    fn cannot(&self, what: &'static str) -> Error {
        Error::Model(ModelFault::Incapable {
            family: self.family(),
            what,
        })
    }
}

/// Batch norms, which keep statistics of the pictures that they saw.
pub trait BatchNormed: Model {
    /// Runs a batch of images with the statistics of the batch in place of those that are kept, and adds them.
    ///
    /// # Errors
    /// When a batch is too small to have a variance, shapes do not fit or the device fails.
    fn observe(&self, images: &Images, statistics: &RefCell<BatchStatistics>) -> Result<()>;
}

/// Features that a dual encoder can compare by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// Of image and text alone: what retrieval compares.
    Apart,
    /// After blocks that have a joint expert: the second contrast of vl-merging's pre-training.
    Fused,
}

/// The missing capability of a family whose features come out scaled.
const NO_PROJECTIONS: &str = "give features before they are scaled to length one";

/// Images and texts apart.
pub trait DualEncoder: Model {
    /// The branches that the family has. Pre-training contrasts all of them.
    fn branches(&self) -> &'static [Branch] {
        &[Branch::Apart]
    }

    /// Features of images, `(b, d)` of length one, for each branch asked for, in that order. The work that
    /// branches have in common is computed once.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when shapes do not fit or the device fails.
    fn image_features(
        &self,
        images: &Images,
        of: &[Branch],
        pass: &Pass<'_>,
    ) -> Result<Vec<Tensor>>;

    /// Features of texts, `(b, d)` of length one, likewise.
    ///
    /// # Errors
    /// As [`DualEncoder::image_features`].
    fn text_features(&self, texts: &Texts, of: &[Branch], pass: &Pass<'_>) -> Result<Vec<Tensor>>;

    /// Images before their features are scaled to length one, `(b, d)`, of [`Branch::Apart`].
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family has no such step, and as
    /// [`DualEncoder::image_features`].
    fn image_projections(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        let _ = (images, pass);
        Err(self.cannot(NO_PROJECTIONS))
    }

    /// Texts before their features are scaled to length one, `(b, d)`: what mixing of texts works on.
    ///
    /// # Errors
    /// As [`DualEncoder::image_projections`].
    fn text_projections(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        let _ = (texts, pass);
        Err(self.cannot(NO_PROJECTIONS))
    }

    /// Projections scaled to length one, as features are: `(b, d)`.
    ///
    /// # Errors
    /// As [`DualEncoder::image_projections`].
    fn unit(&self, projections: &Tensor) -> Result<Tensor> {
        let _ = projections;
        Err(self.cannot(NO_PROJECTIONS))
    }

    /// The scale and the bias that turn features of a branch into logits.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when the device fails.
    fn similarity(&self, of: Branch) -> Result<Similarity>;

    /// Hidden states of images alone after the last norm, `(b, n, d)`, class token first where there
    /// is one. Patches where `masked: (b, p)` is 1 are hidden.
    ///
    /// # Errors
    /// When the model cannot hide patches, shapes do not fit or the device fails.
    fn image_states(
        &self,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor>;

    /// Runs texts through every linear layer that has a gram matrix and sees texts.
    ///
    /// # Errors
    /// As [`DualEncoder::text_states`].
    fn pass_texts(&self, texts: &Texts, pass: &Pass<'_>) -> Result<()> {
        self.text_states(texts, pass).map(drop)
    }

    /// Hidden states of texts alone after the last norm, `(b, t, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn text_states(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor>;
}

/// Features of one branch: `(b, d)`.
///
/// # Errors
/// [`ModelFault::Incapable`], and as [`DualEncoder::image_features`].
pub fn image_features(
    model: &dyn Model,
    images: &Images,
    of: Branch,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let features = model.dual()?.image_features(images, &[of], pass)?;
    only(model, features)
}

/// Features of one branch: `(b, d)`.
///
/// # Errors
/// [`ModelFault::Incapable`], and as [`DualEncoder::text_features`].
pub fn text_features(
    model: &dyn Model,
    texts: &Texts,
    of: Branch,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let features = model.dual()?.text_features(texts, &[of], pass)?;
    only(model, features)
}

fn only(model: &dyn Model, features: Vec<Tensor>) -> Result<Tensor> {
    let mut features = features.into_iter();
    features
        .next()
        .ok_or_else(|| model.cannot("give features of that branch"))
}

/// Turns features of length one into logits: `scale · cos + bias`.
///
/// The scale is ready to use, whatever the family stores: `exp(logit_scale)` of CLIP, `1 / τ` of a
/// clamped temperature. Gradients go through both to the stored numbers.
#[derive(Clone, Debug)]
pub struct Similarity {
    /// Factor of cosines, a scalar.
    pub scale: Tensor,
    /// The number added after that, a scalar (SigLIP).
    pub bias: Option<Tensor>,
}

impl Similarity {
    /// Logits in f32 of all pairs: `images: (m, d)` and `texts: (n, d)` of length one give `(m, n)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn logits(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let [images, texts] = [images, texts].map(|features| features.to_dtype(DType::F32));
        let scale = self.scale.to_dtype(DType::F32)?;
        let logits = images?.matmul(&texts?.t()?)?.broadcast_mul(&scale)?;
        Ok(match &self.bias {
            Some(bias) => logits.broadcast_add(&bias.to_dtype(DType::F32)?)?,
            None => logits,
        })
    }
}

/// The hidden states of all tokens of texts and their images from a fusion encoder. Their order within the family's
/// sequence is its own business.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Text tokens after the last norm, `(b, t, d)`; of a family that pools the first token's state, it may
    /// be that one alone, `(b, 1, d)`.
    pub text: Tensor,
    /// Image tokens after the last norm, class token first where there is one, `(b, n, d)`.
    pub image: Tensor,
}

/// A text as far as a family reads it without an image: hidden states, whose order is the family's own business.
#[derive(Clone, Debug, Default)]
pub struct ReadText {
    /// Hidden states.
    pub states: Vec<Tensor>,
}

impl ReadText {
    /// The memory that it takes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let of = |states: &Tensor| states.elem_count() * states.dtype().size_in_bytes();
        self.states.iter().map(of).sum()
    }
}

/// An image as far as a family looks at it without a text.
#[derive(Clone, Debug)]
pub struct LookedAt {
    /// The image.
    pub images: Images,
    /// Hidden states, whose order is the family's own business.
    pub states: Vec<Tensor>,
}

/// Texts together with images.
pub trait FusionEncoder: Model {
    /// Texts and images together.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn fuse(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused>;

    /// The input of classifiers, made of it, `(b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`] where the checkpoint lacks the pooler, or when the device fails.
    fn pooled(&self, fused: &Fused) -> Result<Tensor>;

    /// The states that masked words are guessed from, `(b, t, d)`: those of [`FusionEncoder::fuse`], unless
    /// the family reads texts in another way there.
    ///
    /// # Errors
    /// As [`FusionEncoder::fuse`].
    fn guessed_from(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(self.fuse(pair, pass)?.text)
    }

    /// The states that hidden patches and masked words are guessed from: those of [`FusionEncoder::fuse`], unless the
    /// family decodes images first, or can leave hidden patches out ([`Pair::leaves_out`]). Image states are those of all
    /// patches, hidden ones too.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`] where the family cannot leave patches out, and as [`FusionEncoder::fuse`].
    fn reconstructed(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        match pair.leaves_out {
            true => Err(self.cannot("leave hidden patches out")),
            false => self.fuse(pair, pass),
        }
    }

    /// The input of the matching head, `(b, d)`: that of classifiers, unless the family reads texts in another way
    /// there.
    ///
    /// # Errors
    /// As [`FusionEncoder::fuse`] and [`FusionEncoder::pooled`].
    fn matched(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        self.pooled(&self.fuse(pair, pass)?)
    }

    /// The scores of the ranking head for each of several texts with its image, `(b, texts)`: the n-th texts of all
    /// images together, with a pass of their own; one image alone is that of all texts, `(texts, 1)`. A family computes
    /// once whatever all texts see of an image.
    ///
    /// # Errors
    /// As [`FusionEncoder::answer`].
    fn rank(&self, texts: &[&Texts], images: &Images, passes: &[Pass<'_>]) -> Result<Tensor> {
        let scores = texts.iter().zip(passes).map(|(texts, pass)| {
            let images = images.of_texts(texts.ids.dim(0)?)?;
            let pooled = self.pooled(&self.fuse(&Pair::new(texts, &images), pass)?)?;
            self.score(Head::Ranking, &pooled)
        });
        Ok(Tensor::cat(&scores.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// Each text as far as the family reads it without an image, for [`FusionEncoder::rank_read`]: nothing of a
    /// family that reads both together from the start.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn read_text(&self, texts: &Texts) -> Result<Vec<ReadText>> {
        Ok(vec![ReadText::default(); texts.ids.dim(0)?])
    }

    /// An image as far as the family looks at it without a text.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn look_at(&self, images: &Images) -> Result<LookedAt> {
        Ok(LookedAt {
            images: images.clone(),
            states: Vec::new(),
        })
    }

    /// The scores of texts that were read before with one image that was looked at before: `(texts, 1)`, as
    /// [`FusionEncoder::rank`] has it.
    ///
    /// # Errors
    /// As [`FusionEncoder::rank`].
    fn rank_read(&self, texts: &Texts, read: &[&ReadText], image: &LookedAt) -> Result<Tensor> {
        let _ = read;
        self.rank(&[texts], &image.images, &[Pass::new()])
    }

    /// Logits of answers to questions, `(b, answers)`.
    ///
    /// # Errors
    /// As [`FusionEncoder::fuse`] and [`FusionEncoder::pooled`].
    fn answer(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let pooled = self.pooled(&self.fuse(pair, pass)?)?;
        self.score(Head::Vqa, &pooled)
    }

    /// Logits of false and true for sentences about two images each, `(b, 2)`; each image has a pass
    /// of its own. A family whose head reads all tokens of both passes overrides this.
    ///
    /// # Errors
    /// As [`FusionEncoder::answer`].
    fn judge(&self, texts: &Texts, images: [&Images; 2], passes: [Pass<'_>; 2]) -> Result<Tensor> {
        let [one, two] = [0, 1].map(|nth| {
            let pair = Pair::new(texts, images[nth]).nth(nth);
            self.pooled(&self.fuse(&pair, &passes[nth])?)
        });
        self.score(Head::Nlvr2, &Tensor::cat(&[one?, two?], 1)?)
    }
}

/// The images, and the words written so far, as a captioner keeps them.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Keys and values of the images side by side, `(b, p, 2 d)`, for each layer that looks at them.
    pub images: Vec<Tensor>,
    /// Those of the words so far, `(b, t, 2 d)`, for each layer; `None` before the first word.
    pub words: Vec<Option<Tensor>>,
    /// Words so far.
    pub n_words: usize,
}

impl Seen {
    /// The kept states of the captions of these numbers, in this order; one may occur several times, as where several
    /// captions go on from the same words.
    ///
    /// # Errors
    /// When the device fails.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        let of = |kept: &Tensor| kept.contiguous()?.index_select(rows, 0);
        let words = (self.words.iter()).map(|words| words.as_ref().map(of).transpose());
        Ok(Self {
            images: (self.images.iter().map(of)).collect::<candle_core::Result<_>>()?,
            words: words.collect::<candle_core::Result<_>>()?,
            n_words: self.n_words,
        })
    }
}

/// Captions of images, word by word.
pub trait Captioner: Model {
    /// Looks at images once.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn see(&self, images: &Images, pass: &Pass<'_>) -> Result<Seen>;

    /// Logits of the next word, `(b, vocabulary)`, after another one: `ids: (b)`. A family decides
    /// how its sequences begin; the first ids are those of the first word after that.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when shapes do not fit or the device fails.
    fn next(&self, seen: &mut Seen, ids: &Tensor) -> Result<Tensor>;
}
