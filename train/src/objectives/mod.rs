//! What is learned: each objective turns a batch into a loss.
//!
//! One file each; [`by_name`] is the table of all.

mod contrastive;
mod image_classification;
mod masked_image;
mod masked_language;
mod matching;
mod nlvr2;
mod retrieval;
mod similarity;
mod step;
mod text_masked_language;
mod vqa;

pub use contrastive::Contrastive;
pub use image_classification::ImageClassification;
pub use masked_image::MaskedImage;
pub use masked_language::MaskedLanguage;
pub use matching::Matching;
pub use nlvr2::Nlvr2;
pub use retrieval::Retrieval;
pub use step::{Randomness, Shared, Step};
pub use text_masked_language::TextMaskedLanguage;
pub use vqa::Vqa;

use std::sync::Arc;

use candle_core::Tensor;
use evaluate::models::{Dvae, Head};

use crate::{Error, Result};

/// What an objective learns from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pictures.
    pub image: bool,
    /// Texts.
    pub text: bool,
    /// Texts with words masked.
    pub masked_words: bool,
    /// Pictures with patches masked, and a second view of them for the tokenizer of images.
    pub masked_patches: bool,
}

impl Needs {
    /// What two objectives need together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            image: self.image || other.image,
            text: self.text || other.text,
            masked_words: self.masked_words || other.masked_words,
            masked_patches: self.masked_patches || other.masked_patches,
        }
    }
}

/// A loss and what is told of it.
#[derive(Clone, Debug)]
pub struct Loss {
    /// A scalar with a graph. Its gradients, averaged over the ranks, are those of the whole
    /// batch's loss.
    pub value: Tensor,
    /// The loss as it is reported: averaged over the ranks, that of the whole batch.
    pub reported: f64,
    /// Numbers beside it, such as accuracies: name, sum over cases, cases.
    pub measures: Vec<(&'static str, f64, f64)>,
}

impl Loss {
    /// A loss that is a mean over this rank's examples, of which every rank has as many.
    fn mean(value: Tensor, measures: Vec<(&'static str, f64, f64)>) -> Result<Self> {
        Ok(Self {
            reported: f64::from(
                value
                    .to_dtype(candle_core::DType::F32)?
                    .to_scalar::<f32>()?,
            ),
            value,
            measures,
        })
    }
}

/// Something to be learned.
pub trait Objective: Send + Sync {
    /// Its name in recipes and logs.
    fn name(&self) -> &'static str;

    /// What it learns from.
    fn needs(&self) -> Needs;

    /// The heads that it uses: they may start fresh.
    fn heads(&self) -> &'static [Head];

    /// The loss on a batch.
    ///
    /// # Errors
    /// When the model lacks a head, the batch lacks what is needed, or the device fails.
    fn loss(&self, step: &Step<'_>) -> Result<Loss>;
}

/// The names that recipes know.
pub const NAMES: [&str; 10] = [
    "itc",
    "itm",
    "mlm",
    "text_mlm",
    "mim",
    "image_mim",
    "image_classification",
    "retrieval",
    "vqa",
    "nlvr2",
];

/// Whether an objective guesses tokens of images, so that it needs their tokenizer.
#[must_use]
pub fn needs_image_tokenizer(name: &str) -> bool {
    matches!(name, "mim" | "image_mim")
}

/// The objective of a name; `image_tokenizer` is for those that guess tokens of images.
///
/// # Errors
/// [`Error::UnknownObjective`]; [`Error::NoImageTokenizer`].
pub fn by_name(name: &str, image_tokenizer: Option<&Arc<Dvae>>) -> Result<Box<dyn Objective>> {
    let tokenizer = || {
        let tokenizer = image_tokenizer.cloned();
        tokenizer.ok_or_else(|| Error::NoImageTokenizer { name: name.into() })
    };
    Ok(match name {
        "mim" => Box::new(MaskedImage::with_text(tokenizer()?)),
        "image_mim" => Box::new(MaskedImage::alone(tokenizer()?)),
        "itc" => Box::new(Contrastive),
        "itm" => Box::new(Matching),
        "mlm" => Box::new(MaskedLanguage),
        "text_mlm" => Box::new(TextMaskedLanguage),
        "image_classification" => Box::new(ImageClassification),
        "retrieval" => Box::new(Retrieval),
        "vqa" => Box::new(Vqa),
        "nlvr2" => Box::new(Nlvr2),
        _ => {
            return Err(Error::UnknownObjective {
                name: name.into(),
                known: NAMES.join(", "),
            });
        }
    })
}

/// Rows of `logits: (n, classes)` whose largest number is the target's.
fn n_right(logits: &Tensor, targets: &[u32]) -> Result<f64> {
    let best: Vec<u32> = logits.detach().argmax(candle_core::D::Minus1)?.to_vec1()?;
    Ok(best.iter().zip(targets).filter(|(a, b)| a == b).count() as f64)
}
