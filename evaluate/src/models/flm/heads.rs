//! The heads of an FLM, under their published names.

use std::path::PathBuf;

use candle_core::Tensor;

use super::{Config, FAMILY};
use crate::models::heads::{Classifier, MaskedLanguage};
use crate::models::{Head, Stream, Streams};
use crate::nn::Linear;
use crate::{Error, ModelFault, Result, Weights};

/// Answers of the published question answering head; a fresh head has as many.
const PUBLISHED_ANSWERS: usize = 3129;

/// The heads of words by stream: the reconstructor's, the forward stream's, the reverse stream's. The
/// published names of the latter two are crossed.
const WORDS: [&str; 3] = ["lm_score", "lm_score_r", "lm_score_f"];

/// The heads that a checkpoint has. Asking for one it lacks is [`Error::NoHead`].
#[derive(Clone, Debug)]
pub(super) struct Heads {
    /// Of the query stream.
    query_pooler: Option<Linear>,
    /// Of one stream.
    text_pooler: Option<Linear>,
    /// By stream; those that share the first one's weights are not there.
    words: [Option<MaskedLanguage>; 3],
    masked_words: Option<MaskedLanguage>,
    matching: Option<Linear>,
    ranking: Option<Linear>,
    vqa: Option<Classifier>,
    nlvr2: Option<Classifier>,
    file: PathBuf,
}

impl Heads {
    /// Loads every head that the checkpoint has, and every head that may start fresh.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.width;
        let classes = |name: &str, fresh: usize| match weights.shape(name) {
            Some(shape) => shape.first().copied().unwrap_or_default(),
            None => fresh,
        };
        let linear = |name: &str, n: usize| {
            let is_there = weights.has(&format!("{name}.weight"));
            is_there
                .then(|| Linear::load(weights, name, d, n))
                .transpose()
        };
        let words = |name: &str| {
            let n = classes(&format!("{name}.bias"), config.text.vocabulary);
            let load = || MaskedLanguage::load(weights, name, d, n);
            weights.has(&format!("{name}.")).then(load).transpose()
        };
        let classifier = |name: &str, [inputs, inner]: [usize; 2], fresh: usize| {
            let n = classes(&format!("{name}.3.weight"), fresh);
            let load = || Classifier::load(weights, name, inputs, inner, n);
            weights.has(&format!("{name}.")).then(load).transpose()
        };
        let answers = weights.fresh_classes("vqa_classifier");
        Ok(Self {
            query_pooler: linear("cross_modal_text_pooler_f.dense", d)?,
            text_pooler: linear("cross_modal_text_pooler.dense", d)?,
            words: [words(WORDS[0])?, words(WORDS[1])?, words(WORDS[2])?],
            masked_words: words("mlm_score")?,
            matching: linear("itm_score.fc", 2)?,
            ranking: linear("rank_output", 1)?,
            vqa: classifier(
                "vqa_classifier",
                [d, 2 * d],
                answers.unwrap_or(PUBLISHED_ANSWERS),
            )?,
            nlvr2: classifier("nlvr2_classifier", [2 * d, 2 * d], 2)?,
            file: weights.checkpoint().path().to_owned(),
        })
    }

    fn need<'a, T>(
        &self,
        part: &'a Option<T>,
        what: &'static str,
        prefix: &'static str,
    ) -> Result<&'a T> {
        part.as_ref().ok_or_else(|| Error::NoHead {
            path: self.file.clone(),
            what,
            prefix,
        })
    }

    /// The part of a head, which a checkpoint may lack.
    fn of<'a, T>(&self, head: Head, part: &'a Option<T>) -> Result<&'a T> {
        let prefix = prefixes(head).first().copied().unwrap_or_default();
        self.need(part, head.title(), prefix)
    }

    /// The pooler of a way to read: `(b, d) -> (b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when the device fails.
    pub fn pool(&self, streams: Streams, first: &Tensor) -> Result<Tensor> {
        let pooler = match streams {
            Streams::Three => self.need(
                &self.query_pooler,
                "pooler of the query stream",
                "cross_modal_text_pooler_f",
            ),
            Streams::Causal | Streams::Bidirectional => {
                self.need(&self.text_pooler, "pooler", "cross_modal_text_pooler")
            }
        }?;
        Ok(pooler.forward(first)?.tanh()?)
    }

    /// The head that guesses words from the states of a stream.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn words(&self, stream: Stream) -> Result<&MaskedLanguage> {
        let own = match stream {
            Stream::Queries => 0,
            Stream::Forward => 1,
            Stream::Reverse => 2,
        };
        match &self.words[own] {
            Some(head) => Ok(head),
            None => self.of(Head::CausalLanguage, &self.words[0]),
        }
    }

    /// The scores of a head for rows of hidden states.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when the device fails.
    pub fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        Ok(match head {
            Head::Matching => self.of(head, &self.matching)?.forward(x)?,
            Head::Ranking => self.of(head, &self.ranking)?.forward(x)?,
            Head::MaskedLanguage => self.of(head, &self.masked_words)?.forward(x)?,
            Head::CausalLanguage => self.of(head, &self.words[0])?.forward(x)?,
            Head::Vqa => self.of(head, &self.vqa)?.forward(x)?,
            Head::Nlvr2 => self.of(head, &self.nlvr2)?.forward(x)?,
            _ => return Err(has_none(head)),
        })
    }

    /// The number of classes that a head tells apart.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn n_classes(&self, head: Head) -> Result<usize> {
        Ok(match head {
            Head::Matching => self.of(head, &self.matching)?.weight().dim(0)?,
            Head::Ranking => self.of(head, &self.ranking)?.weight().dim(0)?,
            Head::MaskedLanguage => self.of(head, &self.masked_words)?.vocabulary(),
            Head::CausalLanguage => self.of(head, &self.words[0])?.vocabulary(),
            Head::Vqa => self.of(head, &self.vqa)?.n_classes(),
            Head::Nlvr2 => self.of(head, &self.nlvr2)?.n_classes(),
            _ => return Err(has_none(head)),
        })
    }
}

/// Beginnings of the names of a head's weights; the first one is that of the weights that have its classes.
pub(super) fn prefixes(head: Head) -> &'static [&'static str] {
    match head {
        Head::Matching => &["itm_score"],
        Head::Ranking => &["rank_output"],
        Head::MaskedLanguage => &["mlm_score"],
        Head::CausalLanguage => &["lm_score"],
        Head::Vqa => &["vqa_classifier"],
        Head::Nlvr2 => &["nlvr2_classifier"],
        _ => &[],
    }
}

fn has_none(head: Head) -> Error {
    Error::Model(ModelFault::Incapable {
        family: FAMILY.name,
        what: match head {
            Head::Contrastive | Head::FusedContrastive => "encode images and texts apart",
            Head::MaskedImage => "guess patches",
            _ => "classify images",
        },
    })
}
