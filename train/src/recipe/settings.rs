//! The parts of a recipe: its model, its data, its objectives, its length, and the states to keep.

use std::path::PathBuf;

use evaluate::models::{Overrides, RouterWay, ShallowAttention, Streams};
use merge::layouts::ClipActivation;
use serde::{Deserialize, Serialize};

use crate::augment::{FlipGuard, PictureStep, RandomErasing};
use crate::data::Sampling;
use crate::objectives::{ContrastSettings, LanguageSettings, PairSettings, SignalSettings};

/// Facts about the model that its checkpoint lacks, and the sizes to bring it to.
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
    /// Activation of the FFNs of both towers, of a CLIP beside which nothing says it: `quick_gelu`, `gelu`, `gelu_tanh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<ClipActivation>,
    /// The divisor of similarities, of a model that does not learn it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The numbers subtracted from red, green and blue of a picture, scaled to [0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_mean: Option<[f32; 3]>,
    /// The divisors of red, green and blue after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_deviation: Option<[f32; 3]>,
    /// The way of reading texts, where a family has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// Tokens of a text that is read together with an image, where a family fixes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_len: Option<usize>,
    /// The choice of routers of experts where nothing is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<RouterWay>,
    /// Blocks between the encoder and the head of hidden patches, where `masked_signal` starts without that head (0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_depth: Option<usize>,
    /// Whether the head of masked words, where `masked_signal` starts without it, ends in the word embedding (true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied_words: Option<bool>,
    /// Do what the published program does where that is a slip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_published: Option<bool>,
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
            activation: self.activation,
            temperature: self.temperature,
            image_mean: self.image_mean,
            image_deviation: self.image_deviation,
            streams: self.streams,
            pair_len: self.pair_len,
            as_published: self.as_published,
            routing: self.routing,
            decoder_depth: self.decoder_depth,
            tied_words: self.tied_words,
        }
    }
}

/// A split of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitName {
    /// `coco`, `f30k`, `vg`, `sbu`, `gcc`, `cc3m`, `cc12m`, `vqa`, `nlvr2` or `wikibk`.
    pub dataset: String,
    /// Its split, such as `train`.
    pub split: String,
}

/// The data to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Folder of arrow files or of X-VLM's JSON files, or of data sets in CSV, in folders of classes or packed.
    pub folder: PathBuf,
    /// Splits, one after the other; captions, or questions, or statements.
    pub train: Vec<SplitName>,
    /// A vocab.txt or tokenizer.json, a folder with one, or a name on the hub.
    #[serde(default = "bert_name")]
    pub tokenizer: String,
    /// Count a caption that an image has twice once.
    #[serde(default)]
    pub without_repeats: bool,
    /// `arrow`: arrow files in the folder, or X-VLM's JSON files where there are no such. `csv`: a folder for each data set, with `train_anno.csv` and
    /// `train/`, as ZeroVL keeps them. `folders`: a folder for each split of a data set, with a folder for
    /// each class. `packed`: shards of a webdataset or parquet files in the folder of a data set of any name; captions
    /// where an objective sees texts, else classes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: DataFormat,
    /// `shuffle`, `sequential` or `debias`: which data set the examples of a batch come from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// Mask, replace and leave out words of captions, as ZeroVL does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub caption_corruption: bool,
}

/// The formats of data sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Arrow files, or else X-VLM's JSON files.
    #[default]
    Arrow,
    /// CSV files beside folders of pictures.
    Csv,
    /// Folders of classes.
    Folders,
    /// Shards of webdatasets, or parquet files.
    Packed,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An objective and its weight in the sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSettings {
    /// `itc`, `itm`, `mlm`, `text_mlm`, `mim`, `image_mim`, `image_classification`, `entropy`, `linear_probe`,
    /// `retrieval`, `vqa`, `nlvr2`, `nce`, `mixup_nce`, `flm`, `ar`, `captioning`, `prefix_lm`,
    /// `random_itm`, `ranking`, `masked_signal`.
    pub name: String,
    /// Factor of its loss.
    #[serde(default = "one_f64")]
    pub weight: f64,
    /// The settings by which `nce` and `mixup_nce` compare and mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<ContrastSettings>,
    /// The settings by which `flm`, `ar`, `captioning` and `prefix_lm` guess words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<LanguageSettings>,
    /// The pairs that belong together for `itc` and `itm`, and the draws of negatives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PairSettings>,
    /// The settings by which `masked_signal` masks and guesses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalSettings>,
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

/// By how much EVE's `color` changes brightness, contrast and saturation.
const PUBLISHED_COLOR: f64 = 0.4;

/// The changes of pictures before a model learns from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Augmentation {
    /// Resized to a square, as in evaluation.
    Square,
    /// EVE's: a random part of the picture, mirrored half the time. The same as `random` with
    /// `operations: 0`.
    None,
    /// EVE's: the same, then brightness, contrast and saturation. The same as `random` with `operations: 0`
    /// and `color: 0.4`.
    Color,
    /// EVE's: the same as `random` with its defaults.
    Rand,
    /// A random part of the picture, mirrored half the time, with its colors changed, then random
    /// operations on its colors and shape (RandAugment).
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
        /// Brightness, contrast and saturation, each times a factor from `1 - color` to `1 + color`, in
        /// random order.
        #[serde(default, skip_serializing_if = "is_default")]
        color: f64,
        /// The texts that keep their picture from being mirrored: `none`, `as_published` or `words`.
        #[serde(default, skip_serializing_if = "is_default")]
        flip_guard: FlipGuard,
        /// Do what EVE's published RandAugment does where that is a slip: AutoContrast makes a channel
        /// without a 0 white, and Sharpness wraps around where it exceeds a byte.
        #[serde(default, skip_serializing_if = "is_default")]
        as_published: bool,
    },
    /// A list of steps, as ZeroVL's recipes have it.
    Listed {
        /// The steps, in order; the last gives a square of the model's size.
        steps: Vec<PictureStep>,
        /// Boxes that are erased afterwards.
        #[serde(default)]
        erasing: RandomErasing,
    },
}

impl Augmentation {
    /// `random` with this number of operations, and colors changed by `color`.
    fn random(operations: usize, color: f64) -> Self {
        Self::Random {
            operations,
            magnitude: seven(),
            flip: true,
            least_area: half(),
            color,
            flip_guard: FlipGuard::None,
            as_published: false,
        }
    }

    /// The settings behind a short name; others as they are.
    #[must_use]
    pub fn in_full(&self) -> Self {
        match self {
            Self::None => Self::random(0, 0.0),
            Self::Color => Self::random(0, PUBLISHED_COLOR),
            Self::Rand => Self::default(),
            others => others.clone(),
        }
    }
}

impl Default for Augmentation {
    fn default() -> Self {
        Self::random(two(), 0.0)
    }
}

/// The masking of words.
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

/// The masking of patches of images, in rectangular blocks, and the tokenizer of the tokens behind them.
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

/// The states to keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaveSettings {
    /// The span between two states; the end alone unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// The number of states that stay; the oldest goes.
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
    /// The span between two measurements.
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

fn bert_name() -> String {
    "bert-base-uncased".into()
}

fn coco_name() -> String {
    "coco".into()
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
