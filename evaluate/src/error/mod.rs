//! The errors of this crate, one variant per fault.

mod advice;
mod data;
mod encode;
mod given;
mod judged;
mod labels;
mod model;
mod outside;
mod ranks;
mod report;
mod scores;
mod shortlist;
mod text;
mod words;

use std::path::{Path, PathBuf};

pub use data::DataFault;
pub use encode::EncodeFault;
pub use given::GivenFault;
pub use judged::JudgedFault;
pub use labels::LabelFault;
pub use model::ModelFault;
pub use outside::OutsideFault;
pub use ranks::RanksFault;
pub use report::ReportFault;
pub use scores::ScoresFault;
pub use shortlist::ShortlistFault;
pub use text::TextFault;

use words::{listed, nearest_of, unused_note};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the file, the line and the id at hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- files ------------------------------------------------------------------------------
    /// A tensor file could not be read.
    #[error(transparent)]
    Merge(#[from] merge::Error),
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The failed action, as a verb: `open`, `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Blocks that cannot be merged one after the other.
    #[error("{}: cannot be merged block after block: {why}", path.display())]
    NoLayerwise {
        /// The checkpoint.
        path: PathBuf,
        /// The reason, as a clause.
        why: &'static str,
    },
    /// There is nothing to merge.
    #[error("there is no model to merge")]
    NoModels,
    /// A file is not a regular file, so its size is not known.
    #[error("{}: is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A file is larger than any of its kind has reason to be.
    #[error("{}: has {n_bytes} bytes; at most {limit} are read", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A JSON file is damaged or of another form.
    #[error("{}: is not {what}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The expected kind, as a noun phrase.
        what: &'static str,
        /// The fault, with its line and column.
        source: serde_json::Error,
    },
    /// An entry of a JSON file is damaged or of another form.
    #[error("{}: is not {what}: {fault}", path.display())]
    JsonEntry {
        /// The file.
        path: PathBuf,
        /// The expected kind, as a noun phrase.
        what: &'static str,
        /// The entry and its fault.
        fault: String,
    },
    /// A line of a line-based file is malformed.
    #[error("{}: line {line}: {fault}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The fault, as a clause.
        fault: String,
    },

    // ---- models -----------------------------------------------------------------------------
    /// A checkpoint is not run as asked.
    #[error(transparent)]
    Model(#[from] ModelFault),
    /// Tensors that a user gives to a model are wrong.
    #[error(transparent)]
    Given(#[from] GivenFault),
    /// Pictures cannot be encoded, or their features are wrong.
    #[error(transparent)]
    Encode(#[from] EncodeFault),
    /// A tensor operation failed: shapes that do not fit, or the device.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// A parameter of the model is not in the checkpoint.
    #[error("{}: has no `{name}`{}", path.display(), nearest_of(nearest.as_deref()))]
    MissingWeight {
        /// The checkpoint.
        path: PathBuf,
        /// The parameter.
        name: String,
        /// The name in the checkpoint that is most like it.
        nearest: Option<String>,
    },
    /// A parameter has another shape than the model needs.
    #[error("{}: `{key}` has shape {found:?}, expected {expected:?}", path.display())]
    WeightShape {
        /// The checkpoint.
        path: PathBuf,
        /// The parameter.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// Several parameters of the model are missing or have another shape.
    #[error("{}: {} weights do not fit the model: {}{}", path.display(), misfits.len(), listed(misfits), unused_note(unused))]
    OtherWeights {
        /// The checkpoint.
        path: PathBuf,
        /// The misfits, in the order in which the model asks for them.
        misfits: Vec<crate::weights::Misfit>,
        /// Names in the checkpoint that the model does not ask for.
        unused: Vec<String>,
    },
    /// An image tensor is of another size than the model is for.
    #[error("an image batch of shape {found:?}, but the model is for {expected} x {expected} px")]
    ImageSize {
        /// The shape, `(b, 3, height, width)`.
        found: Vec<usize>,
        /// Side of the model's image.
        expected: usize,
    },
    /// An image tensor cannot be cut into the squares that tokens stand for.
    #[error("an image batch of shape {found:?}, but a token stands for {stride} x {stride} px")]
    ImageStride {
        /// The shape, `(b, 3, height, width)`.
        found: Vec<usize>,
        /// Side of a square.
        stride: usize,
    },
    /// A checkpoint lacks the head that a task needs.
    #[error("{}: has no {what} (`{prefix}`)", path.display())]
    NoHead {
        /// The checkpoint.
        path: PathBuf,
        /// The head, in words.
        what: &'static str,
        /// The first part of its keys.
        prefix: &'static str,
    },

    /// A tokenizer has another vocabulary than the model was trained with.
    #[error("{}: has {found} tokens, but the model knows {expected}", path.display())]
    OtherVocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Its tokens.
        found: usize,
        /// Rows of the model's word embedding.
        expected: usize,
    },
    /// A name is no task.
    #[error("{name:?} is no task; there are: {}", known.join(", "))]
    UnknownTask {
        /// The name as given.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A task that judges files of predictions was to run a model.
    #[error("{task}: no model runs on this task; `vlmerge score {task}` judges files")]
    NotRun {
        /// The task.
        task: &'static str,
    },
    /// The task writes no predictions.
    #[error("{task} has no file of predictions")]
    NoPredictions {
        /// The task.
        task: &'static str,
    },
    /// Images do not part evenly into folds.
    #[error("{n_images} images cannot be split into {n_folds} folds of one size")]
    UnevenFolds {
        /// The number of images.
        n_images: usize,
        /// The number of folds.
        n_folds: usize,
    },
    /// A data set does not tell the official numbers of its sentences.
    #[error(
        "the data set lacks the official numbers of the sentences of pair {pair}, and files of predictions need them"
    )]
    NoOfficialNumber {
        /// The identifier of the pair.
        pair: String,
    },
    /// The classes of a head differ from those of the data.
    #[error(transparent)]
    Label(#[from] LabelFault),
    /// A model's logit is not a number.
    #[error("a logit of example {example} is not a number")]
    LogitNotANumber {
        /// The example, from 0.
        example: usize,
    },
    /// A device is not there, or the program was built without it.
    #[error("the device {name} is not available: {source}")]
    NoDevice {
        /// The device, as the user called it.
        name: String,
        /// The reason.
        source: candle_core::Error,
    },
    /// A device does not compute in a precision.
    #[error("{device} does not compute in {precision}")]
    Precision {
        /// The device.
        device: String,
        /// The precision.
        precision: crate::device::Precision,
    },

    // ---- pictures ---------------------------------------------------------------------------
    /// The bytes are no picture, or a broken one.
    #[error("the picture cannot be decoded: {fault}")]
    Picture {
        /// The fault, as a clause.
        fault: String,
    },
    /// A picture has more pixels than any photograph: it may be an attack on the memory.
    #[error(
        "the picture has {width} x {height} pixels; at most {} are decoded",
        crate::images::MAX_PIXELS
    )]
    PictureTooLarge {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },

    // ---- text -------------------------------------------------------------------------------
    /// A vocabulary or tokenizer file cannot be used.
    #[error("{}: is not a usable tokenizer: {fault}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A tokenizer lacks a token that every text needs.
    #[error("{}: has no token {token}", path.display())]
    SpecialToken {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// A tokenizer is neither a file nor to be had from the hub.
    #[error("tokenizer {name}: is no file, and {fault}")]
    TokenizerFromHub {
        /// The name as given.
        name: String,
        /// The reason why the hub did not help, as a clause.
        fault: String,
    },
    /// Texts were to be read without a tokenizer.
    #[error("texts cannot be read without a tokenizer")]
    NoTokenizer,
    /// A text cannot be turned into tokens.
    #[error("the text {text:?} cannot be tokenized: {fault}")]
    Tokenization {
        /// The beginning of the text.
        text: String,
        /// The tokenizer's reason.
        fault: String,
    },
    /// A vocabulary or a text cannot serve.
    #[error(transparent)]
    Text(#[from] TextFault),

    /// A data set is wrong.
    #[error(transparent)]
    Data(#[from] DataFault),

    // ---- ids and predictions ----------------------------------------------------------------
    /// An id occurs twice where it may occur once.
    #[error("{}: {what} {id} occurs more than once", path.display())]
    DuplicateId {
        /// The file.
        path: PathBuf,
        /// The kind of the id: `question`, `image`.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// An id of one file is not in the file it refers to.
    #[error("{}: {what} {id} is not in {}", path.display(), other.display())]
    UnknownId {
        /// The file.
        path: PathBuf,
        /// The kind of the id.
        what: &'static str,
        /// The id.
        id: String,
        /// The file that should hold it.
        other: PathBuf,
    },
    /// There is nothing to judge.
    #[error("{}: holds no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The missing contents, in the plural.
        what: &'static str,
    },
    /// Predictions or their ground truth cannot be judged.
    #[error(transparent)]
    Judged(#[from] JudgedFault),

    // ---- arrays -----------------------------------------------------------------------------
    /// Scores, or the ids of their rows and columns, cannot be ranked.
    #[error(transparent)]
    Scores(#[from] ScoresFault),
    /// Lists of the best items do not fit their scores.
    #[error(transparent)]
    Shortlist(#[from] ShortlistFault),
    /// A score is not a number, so it has no rank.
    #[error("a score of row {row} is not a number")]
    ScoreNotANumber {
        /// The row, from 0.
        row: usize,
    },
    /// Arrays that belong together differ in length.
    #[error("{what} differ in number: {left} and {right}")]
    LengthsDiffer {
        /// The kinds of both, e.g. `logits and targets`.
        what: &'static str,
        /// Length of the first.
        left: usize,
        /// Length of the second.
        right: usize,
    },
    /// A target is no class.
    #[error("target {target} of example {example} is no class: there are {n_classes}")]
    NoSuchClass {
        /// The target.
        target: i64,
        /// The example, from 0.
        example: usize,
        /// Number of classes.
        n_classes: usize,
    },

    // ---- reports ----------------------------------------------------------------------------
    /// Something is wrong with a result, or with how it is to be shown.
    #[error(transparent)]
    Report(#[from] ReportFault),
    /// Results of another program cannot be used.
    #[error(transparent)]
    Outside(#[from] OutsideFault),
    /// A page could not be filled in.
    #[error("the page cannot be made: {0}")]
    Page(#[from] askama::Error),

    // ---- statistics -------------------------------------------------------------------------
    /// Two samples cannot be paired, because they are not of the same units.
    #[error("no paired test is possible: {fault}")]
    NotPaired {
        /// The difference, as a clause.
        fault: String,
    },
    /// Processes that share the work fail one another.
    #[error(transparent)]
    Ranks(#[from] RanksFault),
    /// Too few or too many draws were asked for.
    #[error("{n} resamples: ask for {least} to {most}")]
    ResampleCount {
        /// The number of draws.
        n: usize,
        /// The fewest.
        least: usize,
        /// The most.
        most: usize,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
