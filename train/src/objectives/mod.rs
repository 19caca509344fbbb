//! Objectives: each turns a batch into a loss.
//!
//! One file each; [`OBJECTIVES`] is the table of all.

mod balance;
mod causal_language;
mod comparison;
mod comparison_bytes;
mod contrastive;
mod entropy;
mod feature_loss;
mod free_language;
mod gather;
mod image_classification;
mod language;
mod linear_probe;
mod masked_image;
mod masked_language;
mod masked_signal;
mod matching;
mod mixup;
mod nce;
mod negatives;
mod nlvr2;
mod pairs;
mod prefix_language;
mod random_matching;
mod ranking;
mod retrieval;
mod sigmoid;
mod spec;
mod step;
mod text_masked_language;
mod vqa;

pub use balance::{BALANCE_WEIGHT, Passes};
pub use causal_language::CausalLanguage;
pub use comparison::{Compared, Comparison, Contrast, Features, Mixed, compare};
pub use comparison_bytes::ComparisonBytes;
pub use contrastive::Contrastive;
pub use entropy::Entropy;
pub use feature_loss::{FeatureGradients, FeatureLoss, PairFeatures};
pub use free_language::FreeLanguage;
pub use image_classification::ImageClassification;
pub use language::LanguageSettings;
pub use linear_probe::LinearProbe;
pub use masked_image::MaskedImage;
pub use masked_language::MaskedLanguage;
pub use masked_signal::{
    HidingStyle, MaskedSignal, PatchMode, SignalPasses, SignalSettings, WordMode,
};
pub use matching::Matching;
pub use mixup::MixDraw;
pub use nce::{ContrastSettings, Nce};
pub(crate) use negatives::draw_negatives;
pub use negatives::{NegativeRules, Negatives, Others, Whole};
pub use nlvr2::Nlvr2;
pub use pairs::PairSettings;
pub use prefix_language::PrefixLanguage;
pub use random_matching::RandomMatching;
pub use ranking::Ranking;
pub use retrieval::Retrieval;
pub use sigmoid::Sigmoid;
pub use spec::{Needs, OBJECTIVES, ObjectiveSpec, Opening, by_name, in_order, readers, spec};
pub use step::{PassWays, Randomness, RoutingOf, Shared, Step};
pub use text_masked_language::TextMaskedLanguage;
pub use vqa::Vqa;

use candle_core::Tensor;
use evaluate::crossing;
use evaluate::models::Streams;

use crate::Result;
use crate::batch::Batch;

/// A loss and what a run logs of it.
#[derive(Clone, Debug)]
pub struct Loss {
    /// A scalar with a graph. Its gradients, averaged over the ranks, are those of the whole
    /// batch's loss.
    pub value: Tensor,
    /// The loss as it is reported: averaged over the ranks, that of the whole batch.
    pub reported: f64,
    /// Further numbers, such as accuracies: name, sum over cases, cases.
    pub measures: Vec<(&'static str, f64, f64)>,
}

impl Loss {
    /// A loss that is a mean over this rank's examples, of which every rank has as many.
    fn mean(value: Tensor, measures: Vec<(&'static str, f64, f64)>) -> Result<Self> {
        Ok(Self {
            reported: f64::from(crossing::number::<f32>(
                &value.to_dtype(candle_core::DType::F32)?,
            )?),
            value,
            measures,
        })
    }
}

/// Something to be learned.
pub trait Objective: Send + Sync {
    /// Its row of [`OBJECTIVES`].
    fn spec(&self) -> &'static ObjectiveSpec;

    /// Its name in recipes and logs.
    fn name(&self) -> &'static str {
        self.spec().name
    }

    /// The loss on a batch.
    ///
    /// # Errors
    /// When the model lacks a head, the batch lacks an input, or the device fails.
    fn loss(&self, step: &Step<'_>) -> Result<Loss>;

    /// The objective as a loss over features of the whole batch, where it is one: then it does not
    /// depend on how many examples are computed at once.
    fn of_features(&self) -> Option<&dyn FeatureLoss> {
        None
    }

    /// Whether its gradients reach its heads alone, all else being as good as frozen.
    fn trains_heads_alone(&self) -> bool {
        false
    }

    /// The rules by which it draws negatives of the whole batch ([`Negatives`]), if it does.
    fn negatives(&self) -> Option<PairSettings> {
        None
    }

    /// The ways of reading a text, of models that have several, that it trains; empty where it reads as the model does,
    /// or in a way of its own that the model's file need not say.
    fn ways_of_reading(&self) -> &'static [Streams] {
        &[]
    }

    /// The number of times that it runs a batch through the model with a graph: routers are balanced over the passes of
    /// a step.
    fn n_passes(&self, batch: &Batch) -> usize {
        let _ = batch;
        1
    }
}
