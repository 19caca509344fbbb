//! Tasks: a data set and a model, to numbers.

mod choice;
mod features;
pub mod grams;
pub mod nlvr2;
mod ranks;
pub mod retrieval;
mod runner;
mod scores;
pub mod vqa;

pub use choice::{Choice, Name};
pub use features::FeatureCache;
pub use ranks::{Ranks, Single};
pub use runner::Runner;
pub use scores::Similarities;

use std::collections::BTreeMap;

use crate::predictions::vqa::Answer;
use crate::reports::Example;
use crate::{Result, Sample};

/// What a task gives for one model.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What each unit of the data set adds to each number.
    pub sample: Sample,
    /// How many images, texts, questions, ... there were.
    pub counts: BTreeMap<String, u64>,
    /// What was retrieved well and badly.
    pub examples: Vec<Example>,
    /// What the model said, in the official form of the task.
    pub predictions: Predictions,
}

/// Predictions in the official form of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// There is none.
    None,
    /// Answers to questions: a JSON list.
    Answers(Vec<Answer>),
    /// True or false by identifier: a CSV file.
    Verdicts(Vec<(String, bool)>),
}

impl Predictions {
    /// The text of the official file; `None` where the task has none.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::None => None,
            // Numbers and strings always have a JSON form.
            Self::Answers(answers) => Some(serde_json::to_string(answers).unwrap_or_default()),
            Self::Verdicts(verdicts) => {
                let verdicts = verdicts.iter().map(|(id, verdict)| (id.as_str(), *verdict));
                Some(crate::predictions::nlvr2::csv(verdicts))
            }
        }
    }
}

/// A split of a benchmark, opened.
pub trait Task {
    /// `retrieval`, `vqa` or `nlvr2`.
    fn name(&self) -> &'static str;

    /// Runs a model on the split.
    ///
    /// # Errors
    /// When the model lacks the task's head, a picture cannot be read or decoded, the device
    /// fails, or the user stops it.
    fn run(&self, runner: &Runner<'_>) -> Result<Outcome>;

    /// The passes whose inputs gram matrices are made of, in batches of at most `size` examples,
    /// always in the same order.
    fn gram_batches(&self, size: usize) -> Vec<grams::Batch>;

    /// Runs one of these batches.
    ///
    /// # Errors
    /// As [`Task::run`].
    fn run_gram_batch(
        &self,
        runner: &Runner<'_>,
        batch: &grams::Batch,
        capture: &crate::capture::Capture,
    ) -> Result<()>;
}
