//! Projections, classifiers and scorers that several families have on top of their models.

use candle_core::{Result, Tensor};

use crate::Weights;
use crate::nn::{Guessed, LayerNorm, Linear, Pass, WordHead, gelu, unit_length};
use crate::weights::Init;

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
    pub(super) fn load(weights: &Weights, names: [&str; 3], width: usize) -> crate::Result<Self> {
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
    pub(super) fn load(
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

    /// The number of classes that it tells apart.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }
}

/// BERT's masked language modeling head; its decoder is not tied to the word embedding.
#[derive(Clone, Debug)]
pub struct MaskedLanguage {
    head: WordHead,
    vocabulary: usize,
}

impl MaskedLanguage {
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        width: usize,
        vocabulary: usize,
    ) -> crate::Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let bias = weights.get(&part("bias"), &[vocabulary], Init::Zeros)?;
        let decoder = Linear::load_without_bias(weights, &part("decoder"), width, vocabulary)?;
        let head = WordHead {
            dense: Linear::load(weights, &part("transform.dense"), width, width)?,
            norm: LayerNorm::load(weights, &part("transform.LayerNorm"), width, BERT_EPSILON)?,
            decoder: decoder.with_bias(bias),
        };
        Ok(Self { head, vocabulary })
    }

    /// The same with the word embedding, `(vocabulary, d)`, for the last layer.
    pub(super) fn load_tied(weights: &Weights, name: &str, words: &Tensor) -> crate::Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let (vocabulary, width) = words.dims2()?;
        let bias = weights.get(&part("bias"), &[vocabulary], Init::Zeros)?;
        let head = WordHead {
            dense: Linear::load(weights, &part("transform.dense"), width, width)?,
            norm: LayerNorm::load(weights, &part("transform.LayerNorm"), width, BERT_EPSILON)?,
            decoder: Linear::new(words.clone(), bias),
        };
        Ok(Self { head, vocabulary })
    }

    /// `(b, t, d) -> (b, t, vocabulary)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let WordHead {
            dense,
            norm,
            decoder,
        } = &self.head;
        decoder.forward(&norm.forward(&dense.forward_gelu(x)?)?)
    }

    /// The mean cross entropy of guessing `labels` from rows, `(n, d)`. On the pass's tape, if there is one, logits of few
    /// rows are in memory at a time, and the gradient of the decoder's weight is added where it belongs, without a copy.
    ///
    /// # Errors
    /// When there are not as many labels as rows, a label is no word, or the device fails.
    pub fn guess_on(&self, x: &Tensor, labels: &[u32], pass: &Pass<'_>) -> Result<Guessed> {
        match pass.tape() {
            Some(tape) if self.head.fits(tape, x) => self.head.record_guess(tape, x, labels),
            _ => Guessed::by(&self.forward(x)?, labels),
        }
    }

    /// The number of words that it tells apart.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}
