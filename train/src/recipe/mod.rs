//! The recipe of a run, as written in YAML. A recipe says everything; nothing is inferred from a name.

mod checked;
mod checks;
mod difference;
mod init;
mod loading;
mod overrides;
mod read;
mod settings;
mod synth;

pub use checked::CheckedRecipe;
pub use difference::differences;
pub use init::{ExpertForm, Init};
pub use loading::{Fit, Loading, Placed, Rename};
pub use overrides::{overlay, overlay_setting};
pub use read::open_document;
pub use settings::{
    Augmentation, DataFormat, DataSettings, ImageMasking, Masking, ModelSettings,
    ObjectiveSettings, SaveSettings, Span, SplitName, ValidationSettings,
};
pub use synth::{Synth, SynthFamily, SynthSize};

use evaluate::models::Setting;
use serde::{Deserialize, Serialize};

use crate::optim::OptimSettings;

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// The start of the weights.
    #[serde(default)]
    pub init: Init,
    /// Facts about the model that its checkpoint lacks, and the sizes to bring it to.
    #[serde(default)]
    pub model: ModelSettings,
    /// The data to learn from.
    pub data: DataSettings,
    /// The objectives.
    pub objectives: Vec<ObjectiveSettings>,
    /// Update rule, rates, groups.
    #[serde(default)]
    pub optim: OptimSettings,
    /// The length of the run.
    pub length: Span,
    /// Examples of a step, over all ranks.
    pub batch_size: usize,
    /// Examples that one rank computes at once; the whole batch is summed over several such parts.
    /// All of a rank's share at once unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_device_batch: Option<usize>,
    /// `f32`; on cards also `bf16` and `f16` (weights and updates stay in f32).
    #[serde(default = "f32_name")]
    pub precision: String,
    /// Probability of leaving out a residual branch of the last block.
    #[serde(default)]
    pub drop_path: f64,
    /// Probability of leaving out a number of the text embedding.
    #[serde(default)]
    pub dropout: f64,
    /// The factor of the balance of routers' experts in the loss; 0.001 unless given, and 0 for `vqa` as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<f64>,
    /// Whether each of several ranks holds its own experts of a mixture alone and computes them for the tokens of all
    /// (false).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_experts: bool,
    /// The changes of pictures.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// The masking of words.
    #[serde(default)]
    pub masking: Masking,
    /// Texts that are drawn beside an image's own for `ranking`; FLM's published program draws 15.
    #[serde(default = "fifteen", skip_serializing_if = "is_fifteen")]
    pub other_texts: usize,
    /// The masking of patches of images, for objectives that guess their tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_masking: Option<ImageMasking>,
    /// Compute the inside of blocks again in the backward pass, for less memory.
    #[serde(default)]
    pub checkpoint_activations: bool,
    /// The seed of all draws.
    #[serde(default = "one")]
    pub seed: u64,
    /// The states to keep.
    #[serde(default)]
    pub save: SaveSettings,
    /// Measuring on the way, never on test data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
}

impl TrainRecipe {
    /// Settings of the run that a family of models may not know.
    #[must_use]
    pub fn model_settings(&self) -> Vec<Setting> {
        let given = [
            (Setting::DropPath, self.drop_path > 0.0),
            (Setting::Dropout, self.dropout > 0.0),
            (Setting::CheckpointActivations, self.checkpoint_activations),
            (Setting::Balance, self.balance.is_some()),
            (Setting::ShareExperts, self.share_experts),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(setting, _)| setting).collect()
    }
}

fn fifteen() -> usize {
    15
}

fn is_fifteen(n: &usize) -> bool {
    *n == 15
}

fn f32_name() -> String {
    "f32".into()
}

fn one() -> u64 {
    1
}
