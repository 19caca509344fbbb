//! The heads of an EVE.

use candle_core::Tensor;

use super::block::Block;
use super::blueprint::NAME;
use super::pairs::PairsHead;
use super::{Config, EPSILON};
use crate::models::heads::{Classifier, MaskedLanguage};
use crate::models::{Head, Similarity};
use crate::nn::{LayerNorm, Linear, unit_length};
use crate::weights::Init;
use crate::{Error, ModelFault, Result, Weights};

/// Answers of the published question answering head; a fresh head has as many.
const PUBLISHED_ANSWERS: usize = 3128;

/// The first value of the temperature of contrast.
const INITIAL_TEMPERATURE: f32 = 0.07;

/// Between these the published program keeps the temperature.
pub(super) const TEMPERATURES: [f64; 2] = [0.001, 0.5];

/// Projections of images and texts, and the divisor of their similarities.
#[derive(Clone, Debug)]
pub(super) struct Contrast {
    image: Linear,
    text: Linear,
    temperature: Tensor,
}

impl Contrast {
    /// `(b, d) -> (b, d)`, of length one.
    pub(super) fn image(&self, x: &Tensor) -> Result<Tensor> {
        Ok(unit_length(&self.image.forward(x)?)?)
    }

    /// `(b, d) -> (b, d)`, of length one.
    pub(super) fn text(&self, x: &Tensor) -> Result<Tensor> {
        Ok(unit_length(&self.text.forward(x)?)?)
    }

    /// Turns features into logits. The published program clamps the temperature in place before each step, and so does
    /// training; for any other caller the temperature of a file is clamped here, with a gradient that is not cut off.
    pub(super) fn similarity(&self) -> Result<Similarity> {
        let [least, most] = TEMPERATURES;
        let clamped = self.temperature.detach().clamp(least, most)?;
        let moved = (clamped - self.temperature.detach())?;
        Ok(Similarity {
            scale: (&self.temperature + moved)?.recip()?,
            bias: None,
        })
    }
}

/// The head that guesses the pixels of hidden patches: red, green and blue of each in turn.
#[derive(Clone, Debug)]
pub(super) struct Pixels {
    /// Blocks before the head, and their norm.
    pub decoder: Option<(Vec<Block>, LayerNorm)>,
    out: Linear,
}

impl Pixels {
    fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let (d, depth) = (config.width, config.decoder_depth);
        let blocks = (0..depth).map(|index| {
            let name = format!("decoder.layers.{index}");
            Block::load_plain(weights, &name, [index, depth], config)
        });
        let decoder = match depth {
            0 => None,
            _ => Some((
                blocks.collect::<Result<_>>()?,
                LayerNorm::load(weights, "decoder.norm", d, EPSILON)?,
            )),
        };
        Ok(Self {
            decoder,
            out: Linear::load(weights, "pixel_head", d, config.patch_len())?,
        })
    }
}

/// The head for pairs of images.
#[derive(Clone, Debug)]
pub(super) enum Judge {
    /// By the states of two passes side by side.
    States(Classifier),
    /// By all tokens of both passes, which attend to each other.
    Tokens(PairsHead),
}

/// The heads that a checkpoint has. Asking for one it lacks is [`Error::NoHead`].
#[derive(Clone, Debug)]
pub(super) struct Heads {
    contrast: Option<Contrast>,
    matching: Option<Linear>,
    vqa: Option<Classifier>,
    judge: Option<Judge>,
    pixels: Option<Pixels>,
    words: Option<MaskedLanguage>,
    patch_len: usize,
    file: std::path::PathBuf,
}

impl Heads {
    /// Loads every head that the checkpoint has, and every head that may start fresh.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn load(weights: &Weights, config: &Config, words: &Tensor) -> Result<Self> {
        let d = config.width;
        let projected = |name: &str| {
            let shape = weights.shape(&format!("{name}.weight"));
            let outputs = shape.and_then(|shape| shape.first().copied());
            Linear::load_without_bias(weights, name, d, outputs.unwrap_or(d))
        };
        let has_contrast =
            weights.has("itc_text_proj_head.") && weights.has("itc_vision_proj_head.");
        let contrast = has_contrast.then(|| {
            Ok::<_, Error>(Contrast {
                image: projected("itc_vision_proj_head")?,
                text: projected("itc_text_proj_head")?,
                temperature: weights.get("itc_temp", &[], Init::Constant(INITIAL_TEMPERATURE))?,
            })
        });
        let matching = weights
            .has("itm_head.")
            .then(|| Linear::load(weights, "itm_head", d, 2));
        // One name, of two heads: they read states of different widths.
        let read = weights
            .shape("output.0.weight")
            .and_then(|shape| shape.get(1));
        let reads_two = read.is_some_and(|&read| read == 2 * d);
        let classes = |fresh: usize| match weights.shape("output.3.weight") {
            Some(shape) => shape.first().copied().unwrap_or_default(),
            None => fresh,
        };
        let classifier = |inputs: usize, fresh: usize| {
            Classifier::load(weights, "output", inputs, 2 * d, classes(fresh))
        };
        let has_output = weights.has("output.");
        let fresh_answers = weights.fresh_classes("output").unwrap_or(PUBLISHED_ANSWERS);
        let vqa = (has_output && !reads_two).then(|| classifier(d, fresh_answers));
        // A head that starts fresh reads all tokens, as in the published recipe.
        let judge = match reads_two {
            true => Some(classifier(2 * d, 2).map(Judge::States)),
            false => weights
                .has("nlvr2_output.")
                .then(|| PairsHead::load(weights, config).map(Judge::Tokens)),
        };
        let pixels = weights.has("pixel_head.");
        let pixels = pixels.then(|| Pixels::load(weights, config));
        let guessed = weights.has("mlm_head.").then(|| match config.ties_words {
            true => MaskedLanguage::load_tied(weights, "mlm_head", words),
            false => MaskedLanguage::load(weights, "mlm_head", d, config.vocabulary),
        });
        Ok(Self {
            pixels: pixels.transpose()?,
            words: guessed.transpose()?,
            patch_len: config.patch_len(),
            contrast: contrast.transpose()?,
            matching: matching.transpose()?,
            vqa: vqa.transpose()?,
            judge: judge.transpose()?,
            file: weights.checkpoint().path().to_owned(),
        })
    }

    fn need<'a, T>(&self, head: Head, part: &'a Option<T>) -> Result<&'a T> {
        part.as_ref().ok_or_else(|| Error::NoHead {
            path: self.file.clone(),
            what: head.title(),
            prefix: prefixes(head).first().copied().unwrap_or_default(),
        })
    }

    /// Projections for retrieval.
    pub(super) fn contrast(&self) -> Result<&Contrast> {
        self.need(Head::Contrastive, &self.contrast)
    }

    /// The head for pairs of images.
    pub(super) fn judge(&self) -> Result<&Judge> {
        self.need(Head::Nlvr2, &self.judge)
    }

    /// The head that guesses the pixels of hidden patches.
    pub(super) fn pixels(&self) -> Result<&Pixels> {
        self.need(Head::MaskedImage, &self.pixels)
    }

    /// The scores of a head for rows of states.
    pub(super) fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        Ok(match head {
            Head::Matching => self.need(head, &self.matching)?.forward(x)?,
            // Class 1 are pairs that match.
            Head::Ranking => {
                let logits = self.need(head, &self.matching)?.forward(x)?;
                logits.narrow(candle_core::D::Minus1, 1, 1)?
            }
            Head::Vqa => self.need(head, &self.vqa)?.forward(x)?,
            Head::MaskedImage => self.pixels()?.out.forward(x)?,
            Head::MaskedLanguage => self.need(head, &self.words)?.forward(x)?,
            Head::Nlvr2 => match self.judge()? {
                Judge::States(classifier) => classifier.forward(x)?,
                Judge::Tokens(_) => {
                    return Err(cannot(
                        "judge two images by their states: it reads all tokens",
                    ));
                }
            },
            _ => return Err(cannot("score by a head of that kind")),
        })
    }

    /// The number of classes that a head tells apart.
    pub(super) fn n_classes(&self, head: Head) -> Result<usize> {
        Ok(match head {
            Head::Matching => self.need(head, &self.matching).map(|_| 2)?,
            Head::Ranking => self.need(head, &self.matching).map(|_| 1)?,
            Head::Vqa => self.need(head, &self.vqa)?.n_classes(),
            Head::Nlvr2 => self.judge().map(|_| 2)?,
            Head::MaskedImage => self.pixels().map(|_| self.patch_len)?,
            Head::MaskedLanguage => self.need(head, &self.words)?.vocabulary(),
            _ => return Err(cannot("tell classes apart by a head of that kind")),
        })
    }
}

fn cannot(what: &'static str) -> Error {
    Error::Model(ModelFault::Incapable { family: NAME, what })
}

/// Beginnings of the names of a head's weights; the first one is that of the weights that have its classes.
pub(super) fn prefixes(head: Head) -> &'static [&'static str] {
    match head {
        Head::Contrastive => &["itc_vision_proj_head", "itc_text_proj_head", "itc_temp"],
        Head::Matching | Head::Ranking => &["itm_head"],
        Head::Vqa => &["output"],
        Head::MaskedImage => &["pixel_head", "decoder", "backbone.mask_embed_vision"],
        Head::MaskedLanguage => &["mlm_head"],
        Head::Nlvr2 => &["nlvr2_output", "attn1", "attn2", "fc.0", "attn_pool"],
        _ => &[],
    }
}
