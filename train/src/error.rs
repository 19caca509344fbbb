//! The errors of this crate.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model, data set or task failed.
    #[error(transparent)]
    Evaluate(#[from] evaluate::Error),
    /// A checkpoint, recipe or plan failed.
    #[error(transparent)]
    Merge(#[from] merge::Error),
    /// The tensor library or the device failed.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
    /// A recipe names an objective that does not exist.
    #[error("there is no objective `{name}`; known are {known}")]
    UnknownObjective {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A family has no loss of this name.
    #[error("there is no loss `{name}` of the family {family}; known are {known}")]
    UnknownLoss {
        /// The name.
        name: String,
        /// The family.
        family: String,
        /// Those of the family.
        known: String,
    },
    /// Tensors of a checkpoint do not fit the fresh model that they are to fill.
    #[error("{}: {n} tensors do not fit the model of `init.fill`: {faults}", path.display())]
    DoesNotFit {
        /// The checkpoint.
        path: PathBuf,
        /// The number of tensors.
        n: usize,
        /// The first of them, with its fault.
        faults: String,
    },
    /// An objective guesses tokens of images, and no tokenizer makes them.
    #[error("`image_masking`: the objective `{name}` needs `image_masking.tokenizer`")]
    NoImageTokenizer {
        /// The objective.
        name: String,
    },
    /// The tokenizer of images makes another number of tokens than there are patches.
    #[error("the tokenizer of images makes {tokens} tokens of a batch of {patches} patches")]
    OtherPatches {
        /// Tokens.
        tokens: usize,
        /// Patches.
        patches: usize,
    },
    /// The head tells other tokens of images apart than the tokenizer makes.
    #[error(
        "the tokenizer of images knows {known} tokens, `mim_score` has classes for {n_classes}; start from a checkpoint without `mim_score`, or give the tokenizer that it was trained with"
    )]
    OtherImageTokens {
        /// Tokens of the tokenizer.
        known: usize,
        /// Classes of the head.
        n_classes: usize,
    },
    /// A data set does not give what an objective learns from.
    #[error("the objective needs {what}, and the data lack it")]
    NotInBatch {
        /// The missing input.
        what: &'static str,
    },
    /// A recipe cannot be read.
    #[error("{}: {reason}", path.display())]
    BadRecipe {
        /// The recipe.
        path: PathBuf,
        /// The fault, with line and column where they are known.
        reason: String,
    },
    /// A setting of a recipe cannot be.
    #[error("`{key}`: {reason}")]
    BadSetting {
        /// The setting.
        key: String,
        /// The fault.
        reason: String,
    },
    /// Another process works in the folder of a run.
    #[error("{}: another run works in this folder", path.display())]
    RunBusy {
        /// The folder.
        path: PathBuf,
    },
    /// The state of a run cannot be resumed.
    #[error("{}: {reason}", path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A state could not be written.
    #[error("the state after step {step} could not be kept: {source}; {}", kept_note(kept.as_deref()))]
    NotSaved {
        /// The step.
        step: u64,
        /// The newest state that is there.
        kept: Option<PathBuf>,
        /// The cause.
        source: Box<Error>,
    },
    /// Kept moments are not those of a variable.
    #[error("the kept moments of `{name}` have another size, or are on another device")]
    OtherMoments {
        /// The variable.
        name: String,
    },
    /// The data know more answers than the head tells apart.
    #[error(
        "the data have {known} answers, but the head has {n_classes} classes; start from a checkpoint without `vqa_classifier`, or rebuild the data"
    )]
    TooManyAnswers {
        /// Answers in the data.
        known: usize,
        /// Classes of the head.
        n_classes: usize,
    },
    /// The data came to an end, which they never should.
    #[error("no more data came")]
    NoData,
    /// Steps of `augmentation.listed` do not end with a picture of the model's size.
    #[error(
        "`augmentation.listed.steps` end with {}, the model sees {expected} x {expected} px; let a step such as `center_crop` have `size: {expected}`",
        match found {
            Some(side) => format!("{side} x {side} px"),
            None => "no square".into(),
        }
    )]
    OtherPictureSide {
        /// Side of the square at the end.
        found: Option<usize>,
        /// Side of the model's image.
        expected: usize,
    },
    /// A data set does not fill one batch.
    #[error(
        "`data.train`: {data} has {found} {}: too few for one batch of {batch_size}; give a smaller `batch_size`",
        if *found == 1 { "example" } else { "examples" }
    )]
    TooFewExamples {
        /// The name of the data.
        data: String,
        /// Its examples.
        found: usize,
        /// Examples of a batch.
        batch_size: usize,
    },
    /// A split has no labels to learn from.
    #[error("the split `{split}` of {dataset} has no labels to learn from")]
    NoLabels {
        /// The data set.
        dataset: String,
        /// The split.
        split: String,
    },
    /// A label is no class.
    #[error("an answer has the label {label}")]
    NegativeLabel {
        /// The label.
        label: i64,
    },
    /// A batch has no other example to compare one with.
    #[error(
        "matching compares each example with others, but one of the batch has none: give larger batches, of more than \
         one image"
    )]
    NoNegative,
    /// An objective runs the model more or less often than it says.
    #[error(
        "the router of `{router}` has seen {found} passes of the objective `{objective}`, which makes {expected}; this is a bug of the program"
    )]
    OtherPasses {
        /// The objective.
        objective: &'static str,
        /// The router.
        router: String,
        /// Passes that it has seen.
        found: usize,
        /// Passes that the objective makes.
        expected: usize,
    },
    /// A loss or a gradient is infinite or not a number.
    #[error("{part} is not finite")]
    NotFinite {
        /// The loss part or gradient.
        part: String,
    },
    /// A loss or a gradient became infinite or not a number, so the run stopped.
    #[error(
        "step {step}: {part} is not finite; {}. Try a smaller `optim.lr`, a longer `optim.warmup` or \
         `optim.max_norm`, in a run with another --out",
        kept_state(*kept)
    )]
    Diverged {
        /// The loss part or gradient.
        part: String,
        /// The step, from 1.
        step: u64,
        /// Steps that are done in the state that is kept.
        kept: Option<u64>,
    },
    /// A head that the Fisher information is asked of is not in the checkpoint.
    #[error(
        "`{name}` is not in the checkpoint: a head that is drawn at random has no Fisher information; give a checkpoint \
         that was trained for the objective"
    )]
    FreshHead {
        /// The weight.
        name: String,
    },
    /// Losses of all classes are not those of one distribution.
    #[error(
        "the probabilities of all classes are {total} together, not 1: the objective's loss is no log-likelihood of one \
         class; --labels given takes the labels of the data"
    )]
    NoProbabilities {
        /// Their sum.
        total: f64,
    },
    /// Ranks do not get along.
    #[error(transparent)]
    Ranks(#[from] crate::collective::Fault),
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The failed action, e.g. `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Slices of one step of the optimizer differ in length.
    #[error(
        "a step on {parameter} parameters got {gradient} gradients and {first_moment} and \
         {second_moment} moments"
    )]
    SliceLengths {
        /// Elements of the parameter.
        parameter: usize,
        /// Elements of the gradient.
        gradient: usize,
        /// Elements of the first moment.
        first_moment: usize,
        /// Elements of the second moment.
        second_moment: usize,
    },
    /// A variable is in no group of the optimizer.
    #[error("the variable `{name}` is in no group of the optimizer")]
    NotGrouped {
        /// The variable.
        name: String,
    },
    /// A variable comes twice.
    #[error("the variable `{name}` is twice in the groups of the optimizer")]
    GroupedTwice {
        /// The variable.
        name: String,
    },
    /// A group names a variable that the model does not have.
    #[error("the optimizer has a group for `{name}`, and the model has no such variable")]
    NoSuchVariable {
        /// The variable.
        name: String,
    },
    /// An entry of the settings is in the name of no variable.
    #[error("no variable's name contains `{entry}` of `{setting}`")]
    MatchesNothing {
        /// The setting, e.g. `trainable`.
        setting: &'static str,
        /// Its entry.
        entry: String,
    },
    /// A number of the settings lies outside of its range.
    #[error("`optim.{setting}` is {value}, which is not {range}")]
    OutOfRange {
        /// The setting, as recipes spell it.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range.
        range: &'static str,
    },
    /// A variable has no moving average.
    #[error("there is no moving average of the variable `{name}`")]
    NotAveraged {
        /// The variable.
        name: String,
    },
    /// No whole number of batches has the size that was asked for.
    #[error("a batch of {batch} is no multiple of the {at_once} examples that fit at once")]
    BatchNotReached {
        /// Examples per step, as asked for.
        batch: u64,
        /// Examples on all devices at once.
        at_once: u64,
    },
    /// A line in the middle of a log is damaged.
    #[error("line {line} of {} is not a record: {source}", path.display())]
    LogLine {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The fault.
        source: serde_json::Error,
    },
}

/// A note on the state from which a run can go on.
fn kept_note(kept: Option<&std::path::Path>) -> String {
    match kept {
        Some(kept) => format!("{} is kept", kept.display()),
        None => "there is no state from before".into(),
    }
}

impl Error {
    /// A hint for the user, where one helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Evaluate(error) => error.hint(),
            Self::Merge(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether the arguments or the recipe are at fault, not the data or the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::BadRecipe { .. }
            | Self::BadSetting { .. }
            | Self::UnknownObjective { .. }
            | Self::UnknownLoss { .. }
            | Self::NoImageTokenizer { .. }
            | Self::OtherPictureSide { .. }
            | Self::FreshHead { .. }
            | Self::OutOfRange { .. } => true,
            Self::Evaluate(error) => error.is_usage(),
            Self::Merge(error) => error.is_usage(),
            _ => false,
        }
    }

    /// An input or output error with its path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// The kept state, as a clause.
fn kept_state(step: Option<u64>) -> String {
    match step {
        Some(step) => format!("the state after step {step} is kept"),
        None => "no state is kept".to_owned(),
    }
}
