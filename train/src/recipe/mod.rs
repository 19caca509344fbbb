//! What a run does, as written in YAML. A recipe says everything; nothing is inferred from a name.

mod checked;
mod difference;
mod init;
mod loading;
mod overrides;
mod read;
mod synth;

pub use checked::CheckedRecipe;
pub use difference::differences;
pub use init::{ExpertForm, Init};
pub use loading::{Fit, Loading, Placed, Rename};
pub use overrides::{overlay, overlay_setting};
pub use read::open_document;
pub use synth::{Synth, SynthFamily, SynthSize};

use std::path::PathBuf;

use evaluate::models::{Overrides, Setting, ShallowAttention, Streams};
use serde::{Deserialize, Serialize};

use crate::augment::{MAX_MAGNITUDE, PictureStep, RandomErasing};
use crate::data::Sampling;
use crate::objectives::{self, ContrastSettings, LanguageSettings};
use crate::optim::OptimSettings;
use crate::{Error, Result};

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// What the weights start from.
    #[serde(default)]
    pub init: Init,
    /// What a checkpoint does not say of its model, and the sizes to bring it to.
    #[serde(default)]
    pub model: ModelSettings,
    /// What is learned from.
    pub data: DataSettings,
    /// What is learned.
    pub objectives: Vec<ObjectiveSettings>,
    /// Update rule, rates, groups.
    #[serde(default)]
    pub optim: OptimSettings,
    /// When the run is over.
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
    /// How pictures are changed.
    #[serde(default)]
    pub augmentation: Augmentation,
    /// How words are masked.
    #[serde(default)]
    pub masking: Masking,
    /// Texts that are drawn beside an image's own for `ranking`; FLM's published program draws 15.
    #[serde(default = "fifteen", skip_serializing_if = "is_fifteen")]
    pub other_texts: usize,
    /// How patches of images are masked, for objectives that guess their tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_masking: Option<ImageMasking>,
    /// Compute the inside of blocks again in the backward pass, for less memory.
    #[serde(default)]
    pub checkpoint_activations: bool,
    /// What all draws are keyed by.
    #[serde(default = "one")]
    pub seed: u64,
    /// When the state is kept.
    #[serde(default)]
    pub save: SaveSettings,
    /// Measuring on the way, never on test data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
}

/// What a checkpoint does not say of its model, and the sizes to bring it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Side of the image in pixels; position tables are resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Text positions; longer tables are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_len: Option<usize>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// First block in which text and image are one sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion_start: Option<usize>,
    /// Text positions that the bias table has room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_table_len: Option<usize>,
    /// Whether text and image see each other before the fusion start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shallow_attention: Option<ShallowAttention>,
    /// Attention heads of the image tower, where a family has towers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_heads: Option<usize>,
    /// Attention heads of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_heads: Option<usize>,
    /// What similarities are divided by, of a model that does not learn it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// What is taken from red, green and blue of a picture, scaled to [0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_mean: Option<[f32; 3]>,
    /// What red, green and blue are divided by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_deviation: Option<[f32; 3]>,
    /// How texts are read, where a family can read them in several ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
}

impl ModelSettings {
    /// The same for opening a model.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        Overrides {
            n_heads: self.heads,
            fusion_start: self.fusion_start,
            shallow_attention: self.shallow_attention,
            text_table_len: self.text_table_len,
            image_heads: self.image_heads,
            text_heads: self.text_heads,
            temperature: self.temperature,
            image_mean: self.image_mean,
            image_deviation: self.image_deviation,
            streams: self.streams,
        }
    }
}

/// A split of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitName {
    /// `coco`, `f30k`, `vg`, `sbu`, `gcc`, `vqa`, `nlvr2` or `wikibk`.
    pub dataset: String,
    /// Its split, such as `train`.
    pub split: String,
}

/// What is learned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Folder of arrow files, or of data sets in CSV or in folders of classes.
    pub folder: PathBuf,
    /// Splits, one after the other; captions, or questions, or statements.
    pub train: Vec<SplitName>,
    /// A vocab.txt or tokenizer.json, a folder with one, or a name on the hub.
    #[serde(default = "bert_name")]
    pub tokenizer: String,
    /// Count a caption that an image has twice once.
    #[serde(default)]
    pub without_repeats: bool,
    /// `arrow`: arrow files in the folder. `csv`: a folder for each data set, with `train_anno.csv` and
    /// `train/`, as ZeroVL keeps them. `folders`: a folder for each split of a data set, with a folder for
    /// each class.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: DataFormat,
    /// `shuffle`, `sequential` or `debias`: which data set the examples of a batch come from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// Mask, replace and leave out words of captions, as ZeroVL does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub caption_corruption: bool,
}

/// How data sets are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Arrow files.
    #[default]
    Arrow,
    /// CSV files beside folders of pictures.
    Csv,
    /// Folders of classes.
    Folders,
}

fn fifteen() -> usize {
    15
}

fn is_fifteen(n: &usize) -> bool {
    *n == 15
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An objective and its weight in the sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSettings {
    /// `itc`, `itm`, `mlm`, `text_mlm`, `mim`, `image_mim`, `image_classification`, `linear_probe`,
    /// `retrieval`, `vqa`, `nlvr2`, `nce`, `mixup_nce`, `flm`, `ar`, `captioning`, `prefix_lm`,
    /// `random_itm`, `ranking`.
    pub name: String,
    /// Factor of its loss.
    #[serde(default = "one_f64")]
    pub weight: f64,
    /// How `nce` and `mixup_nce` compare and mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<ContrastSettings>,
    /// How `flm`, `ar`, `captioning` and `prefix_lm` guess words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<LanguageSettings>,
}

/// A length of training: a number of steps, or of times through the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Steps of the optimizer.
    Steps(u64),
    /// Times through the training data.
    Epochs(f64),
}

impl Span {
    /// The same in steps.
    #[must_use]
    pub fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => ((epochs * steps_per_epoch as f64).floor() as u64).max(1),
        }
    }
}

/// How pictures are changed before they are learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Augmentation {
    /// Resized to a square, as in evaluation.
    Square,
    /// A random part of the picture, mirrored half the time, with random operations on its colors
    /// and shape (RandAugment).
    Random {
        /// Operations that are drawn for each picture; each is done half of the times.
        #[serde(default = "two")]
        operations: usize,
        /// Their strength, from 0 to 10.
        #[serde(default = "seven")]
        magnitude: f64,
        /// Whether a picture may be mirrored.
        #[serde(default = "yes")]
        flip: bool,
        /// The least share of the picture's area that is kept.
        #[serde(default = "half")]
        least_area: f64,
    },
    /// A list of steps, as ZeroVL's recipes have it.
    Listed {
        /// What is done, in order; the end is a square of the model's size.
        steps: Vec<PictureStep>,
        /// Boxes that are erased afterwards.
        #[serde(default)]
        erasing: RandomErasing,
    },
}

impl Default for Augmentation {
    fn default() -> Self {
        Self::Random {
            operations: two(),
            magnitude: seven(),
            flip: true,
            least_area: half(),
        }
    }
}

/// How words are masked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Masking {
    /// Share of the tokens.
    pub probability: f64,
    /// Mask all pieces of a word, or none.
    pub whole_word: bool,
    /// Count padding among the words that may be chosen, as the published program does.
    pub counts_padding: bool,
    /// Choose among all places of the padded text, each on its own, special tokens and padding among
    /// them, as FLM's published program does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub every_place: bool,
}

impl Default for Masking {
    fn default() -> Self {
        Self {
            probability: 0.15,
            whole_word: true,
            counts_padding: true,
            every_place: false,
        }
    }
}

/// How patches of images are masked, in rectangular blocks, and what is guessed behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMasking {
    /// The checkpoint of a discrete autoencoder, or of its encoder, whose tokens are guessed.
    pub tokenizer: PathBuf,
    /// Share of the patches; the published 75 of 196 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The least area of a block, in patches; the published 16 of 196, or as many of another grid,
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_block: Option<usize>,
}

/// When the state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaveSettings {
    /// How often; at the end alone unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// How many states stay; the oldest goes.
    pub keep: usize,
}

impl Default for SaveSettings {
    fn default() -> Self {
        Self {
            every: None,
            keep: 2,
        }
    }
}

/// Measuring on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSettings {
    /// `retrieval`, `vqa`, `nlvr2`, `zero_shot` or `linear_probe`.
    pub task: String,
    /// The data set of retrieval.
    #[serde(default = "coco_name")]
    pub dataset: String,
    /// A split that is not the test split.
    pub split: String,
    /// How often.
    pub every: Span,
    /// The number that the best weights are chosen by: `rsum`, `vqa_score` or `accuracy`; the
    /// task's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The first examples alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Examples that are computed together.
    #[serde(default = "sixteen")]
    pub batch_size: usize,
}

impl TrainRecipe {
    /// Settings of the run that a family of models may not know.
    #[must_use]
    pub fn model_settings(&self) -> Vec<Setting> {
        let given = [
            (Setting::DropPath, self.drop_path > 0.0),
            (Setting::Dropout, self.dropout > 0.0),
            (Setting::CheckpointActivations, self.checkpoint_activations),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(setting, _)| setting).collect()
    }

    /// Whether an objective has settings that it reads, and all that it needs.
    fn check_contrast(&self, objective: &ObjectiveSettings) -> Result<()> {
        let bad = |key: &str, reason: &str| {
            Err(Error::BadSetting {
                key: key.into(),
                reason: reason.into(),
            })
        };
        let mixes = objective.name == "mixup_nce";
        let reads = objectives::spec(&objective.name)?.reads_contrast();
        if objective.contrast.is_some() && !reads {
            let reason = format!(
                "`{}` does not read it: only `nce` and `mixup_nce` do",
                objective.name
            );
            return bad("objectives.contrast", &reason);
        }
        let block = objective.contrast.and_then(|contrast| contrast.block);
        if mixes && block.is_none() && self.per_device_batch.is_some() {
            return bad(
                "objectives.contrast.block",
                "say within how many rows pairs are mixed, for what is learned must not depend on `per_device_batch`; the published program takes as many as it computes at once",
            );
        }
        Ok(())
    }

    /// Whether an objective reads the settings of guessing words, and whether they can be.
    fn check_language(objective: &ObjectiveSettings) -> Result<()> {
        let bad = |key: String, reason: String| Err(Error::BadSetting { key, reason });
        let Some(language) = objective.language else {
            return Ok(());
        };
        if !objectives::spec(&objective.name)?.reads_language() {
            let reason = format!(
                "`{}` does not read it: only `flm`, `ar`, `captioning` and `prefix_lm` do",
                objective.name
            );
            return bad("objectives.language".into(), reason);
        }
        match language.check() {
            Ok(()) => Ok(()),
            Err((key, reason)) => bad(format!("objectives.language.{key}"), reason),
        }
    }

    /// Looks for what cannot be.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with the key and what is wrong with it.
    fn check(&self) -> Result<()> {
        let bad = |key: &str, reason: String| Error::BadSetting {
            key: key.into(),
            reason,
        };
        self.init.check()?;
        let of_unit = |key: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => Err(bad(key, format!("{value} is not in [0, 1)"))),
        };
        of_unit("drop_path", self.drop_path)?;
        of_unit("dropout", self.dropout)?;
        of_unit("masking.probability", self.masking.probability)?;
        if let Some(share) = self
            .image_masking
            .as_ref()
            .and_then(|masking| masking.share)
        {
            of_unit("image_masking.share", share)?;
        }
        for objective in &self.objectives {
            let spec = objectives::spec(&objective.name)?;
            if spec.needs.masked_patches && self.image_masking.is_none() {
                let name = objective.name.clone();
                return Err(Error::NoImageTokenizer { name });
            }
            self.check_contrast(objective)?;
            Self::check_language(objective)?;
        }
        if let Augmentation::Random {
            magnitude,
            least_area,
            ..
        } = self.augmentation
        {
            let key = "augmentation.random.magnitude";
            if !(0.0..=MAX_MAGNITUDE).contains(&magnitude) {
                let reason = format!("{magnitude} is not in [0, {MAX_MAGNITUDE}]");
                return Err(bad(key, reason));
            }
            let key = "augmentation.random.least_area";
            if !(least_area > 0.0 && least_area <= 1.0) {
                return Err(bad(key, format!("{least_area} is not in (0, 1]")));
            }
        }
        if let Augmentation::Listed { steps, erasing } = &self.augmentation {
            for (number, step) in steps.iter().enumerate() {
                if let Some(fault) = step.fault() {
                    return Err(bad(&format!("augmentation.listed.steps[{number}]"), fault));
                }
            }
            let key = "augmentation.listed.erasing";
            if !(0.0..=1.0).contains(&erasing.probability) || erasing.count == 0 {
                let reason = format!(
                    "`probability` is {}, a share from 0 to 1, and `count` is {}, at least 1",
                    erasing.probability, erasing.count
                );
                return Err(bad(key, reason));
            }
            if self.image_masking.is_some() {
                let reason =
                    "masked patches need two views of a picture, which a list does not give";
                return Err(bad("augmentation.listed", reason.into()));
            }
        }
        if self.data.caption_corruption {
            let masks = |name: &str| Ok::<_, Error>(objectives::spec(name)?.needs.masked_words);
            for objective in &self.objectives {
                if masks(&objective.name)? {
                    let reason = format!(
                        "`{}` masks words itself; leave out one of the two",
                        objective.name
                    );
                    return Err(bad("data.caption_corruption", reason));
                }
            }
        }
        if self.objectives.is_empty() {
            return Err(bad("objectives", "there is none".into()));
        }
        if self.data.train.is_empty() {
            return Err(bad("data.train", "there is no split".into()));
        }
        if self.batch_size == 0 || self.per_device_batch == Some(0) {
            return Err(bad("batch_size", "a batch has at least one example".into()));
        }
        if self.save.keep == 0 {
            return Err(bad("save.keep", "at least one state must stay".into()));
        }
        match self.length {
            Span::Steps(0) => return Err(bad("length", "there are no steps".into())),
            Span::Epochs(n) if !n.is_finite() || n <= 0.0 => {
                return Err(bad("length", format!("{n} epochs")));
            }
            _ => {}
        }
        let mut kinds = std::collections::BTreeSet::new();
        let tables = self.data.train.iter();
        for set in tables.filter(|_| self.data.format == DataFormat::Arrow) {
            let kind = evaluate::datasets::kind(&set.dataset);
            let kind = kind.map_err(|error| bad("data.train", error.to_string()))?;
            kinds.insert(kind.name());
        }
        if kinds.len() > 1 {
            let reason = format!("{kinds:?} cannot be in one batch");
            return Err(bad("data.train", reason));
        }
        if let Some(validation) = &self.validation
            && validation.split.starts_with("test")
        {
            let reason = format!(
                "`{}` is test data: the best weights are chosen by validation data alone",
                validation.split
            );
            return Err(bad("validation.split", reason));
        }
        Ok(())
    }
}

fn f32_name() -> String {
    "f32".into()
}

fn bert_name() -> String {
    "bert-base-uncased".into()
}

fn coco_name() -> String {
    "coco".into()
}

fn one() -> u64 {
    1
}

fn one_f64() -> f64 {
    1.0
}

fn two() -> usize {
    2
}

fn seven() -> f64 {
    7.0
}

fn yes() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

fn sixteen() -> usize {
    16
}
