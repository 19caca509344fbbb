//! Tasks: a data set and a model, to numbers.

pub mod captions;
mod cross;
mod features;
pub mod grams;
pub mod linear_probe;
pub mod nlvr2;
mod passes;
mod reranking;
pub mod retrieval;
mod runner;
mod scores;
mod spec;
mod statistics;
pub mod vqa;
pub mod zero_shot;
pub mod zero_shot_classes;

pub use cross::Candidates;
pub use features::FeatureCache;
pub use linear_probe::classes_of;
pub use runner::Runner;
pub use scores::Similarities;
pub use spec::{NumberSpec, TASKS, TaskOption, TaskOptions, TaskSpec};
pub use statistics::batch_statistics;
pub use vqa::answers_of;

use std::collections::BTreeMap;
use std::path::Path;

use crate::datasets::left_out::Omission;
use crate::models::Model;
use crate::predictions::captions::Caption;
use crate::predictions::score_file::Retrieved;
use crate::predictions::vqa::Answer;
use crate::reports::Example;
use crate::{Result, Sample};

/// The results of a task for one model.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The share of each unit of the data set in each number.
    pub sample: Sample,
    /// The numbers of images, texts, questions, ...
    pub counts: BTreeMap<String, u64>,
    /// Examples of good and bad retrieval.
    pub examples: Vec<Example>,
    /// The model's predictions, in the official form of the task.
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
    /// The class of each image by its name: a CSV file.
    Classes(Vec<(String, i64)>),
    /// Captions of images: a JSON list.
    Captions(Vec<Caption>),
    /// Scores and ranks: a score file.
    Retrieved(Box<Retrieved>),
}

impl Predictions {
    /// Writes the file of the task, replacing one that is there; whether there is such a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<bool> {
        let text = match self {
            Self::None => return Ok(false),
            // Numbers and strings always have a JSON form.
            Self::Answers(answers) => serde_json::to_string(answers).unwrap_or_default(),
            Self::Captions(captions) => serde_json::to_string(captions).unwrap_or_default(),
            Self::Verdicts(verdicts) => {
                let verdicts = verdicts.iter().map(|(id, verdict)| (id.as_str(), *verdict));
                crate::predictions::nlvr2::csv(verdicts)
            }
            Self::Classes(classes) => {
                let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
                let lines = classes.iter();
                let lines = lines.map(|(name, class)| format!("{},{class}\n", quoted(name)));
                format!("image,class\n{}", lines.collect::<String>())
            }
            Self::Retrieved(retrieved) => {
                retrieved.write(path)?;
                return Ok(true);
            }
        };
        merge::io::write_file(path, text.as_bytes(), true)?;
        Ok(true)
    }
}

/// A split of a benchmark, opened.
pub trait Task {
    /// The row of the task.
    fn spec(&self) -> &'static TaskSpec;

    /// The omissions of the data set, though the annotations have them.
    ///
    /// # Errors
    /// When a file's note of it is damaged.
    fn left_out(&self) -> Result<Vec<Omission>>;

    /// Whether predictions in the official form can be written of this split.
    ///
    /// # Errors
    /// Why they cannot, where the data set lacks what the form needs.
    fn check_predictions(&self) -> Result<()> {
        Ok(())
    }

    /// Runs a model on the split.
    ///
    /// # Errors
    /// When the model lacks the task's head, a picture cannot be read or decoded, the device
    /// fails, or the user stops it.
    fn run(&self, runner: &Runner<'_>) -> Result<Outcome>;

    /// The passes whose inputs gram matrices are made of, in batches of at most `size` examples,
    /// always in the same order.
    fn gram_batches(&self, model: &dyn Model, size: usize) -> Vec<grams::Batch>;

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
