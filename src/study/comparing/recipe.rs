//! The recipe of a study of ways to pre-train, as written in YAML.

use std::path::{Path, PathBuf};

use anyhow::Result;
use evaluate::tasks::{TaskOption, TaskSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use train::recipe::{Init, ModelSettings, open_document};

use crate::output::UsageError;
use crate::study::pace::Clock;
use crate::study::recipe::{StudyData, Training};

/// The key that tells such a recipe from others.
pub const KEY: &str = "compare";

/// Settings that all ways share, so that none may have its own.
const SHARED: [&str; 8] = [
    "init",
    "length",
    "data",
    "batch_size",
    "seed",
    "save",
    "validation",
    "precision",
];

/// Everything from fresh weights to curves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRecipe {
    /// Heading of the report.
    pub title: String,
    /// The data to learn from and to measure on.
    pub data: StudyData,
    /// The start of all ways.
    pub init: Init,
    /// Facts about the model that its checkpoint lacks.
    #[serde(default)]
    pub model: ModelSettings,
    /// The ways to pre-train: the others are compared with the first.
    pub compare: Vec<Way>,
    /// The training settings that all ways share.
    pub pretrain: Training,
    /// After how much pre-training models are measured.
    pub at: Points,
    /// Settings of timing a step.
    #[serde(default)]
    pub pace: PaceSettings,
    /// The tasks on which models are measured, fine-tuned or as they are.
    pub tasks: Vec<JudgedTask>,
}

/// A way to pre-train.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Way {
    /// The name of the way.
    pub name: String,
    /// Settings of the model, in pre-training and fine-tuning alike, such as its streams.
    #[serde(default)]
    pub model: Map<String, Value>,
    /// The settings of pre-training in which the way differs from `pretrain`: its objectives, its rate.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// After how much pre-training models are measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Points {
    /// Numbers of steps, ascending; 0 is no pre-training. Each is a run of its own, whose rate falls to its end.
    pub steps: Vec<u64>,
    /// Whether every other way is also measured after as many steps as take as long as these of the first way.
    #[serde(default = "yes")]
    pub equal_seconds: bool,
}

/// Settings of timing a step, by short runs of all ways in turn.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaceSettings {
    /// Steps of each short run, of which the second half counts.
    pub steps: u64,
    /// Short runs of each way.
    pub rounds: usize,
    /// The clock that counts the seconds.
    pub clock: Clock,
}

impl Default for PaceSettings {
    fn default() -> Self {
        Self {
            steps: 20,
            rounds: 3,
            clock: Clock::default(),
        }
    }
}

/// A task on which models are measured. It chooses nothing, so it needs no validation data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedTask {
    /// The task.
    pub task: &'static TaskSpec,
    /// The data set of a task that works on several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// The split.
    pub test: String,
    /// Its first images, questions or statements alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Examples that are measured together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Pairs that a ranking head is asked of, where not of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<CandidateSettings>,
    /// The fine-tuning of models; without it they are measured as they come.
    #[serde(default)]
    pub finetune: Option<Training>,
}

/// Pairs that a ranking head is asked of, as `evaluate --candidates N --candidates-from FILE` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateSettings {
    /// The best texts of each image, and the best images of each text.
    pub number: usize,
    /// The scores that they are the best by.
    pub from: PathBuf,
}

impl JudgedTask {
    /// The data set.
    pub fn dataset(&self) -> &str {
        self.dataset.as_deref().unwrap_or(self.task.dataset)
    }

    /// A name for its steps.
    pub fn slug(&self) -> String {
        format!("{}-{}", self.task.name, self.dataset())
    }
}

impl CompareRecipe {
    /// Reads a recipe, with settings changed, and checks it.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        let recipe: Self = open_document(path, settings)?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<()> {
        self.init.check()?;
        self.data.check()?;
        self.check_ways()?;
        let steps = &self.at.steps;
        if !steps.is_sorted_by(|a, b| a < b) || steps.last().is_none_or(|&last| last == 0) {
            return bad("`at.steps`: give numbers of steps, each larger than the one before");
        }
        if self.at.equal_seconds && (self.pace.steps < 2 || self.pace.rounds == 0) {
            return bad("`pace`: give at least 2 `steps` and 1 of `rounds`");
        }
        if self.tasks.is_empty() {
            return bad("`tasks`: there is none");
        }
        for (index, task) in self.tasks.iter().enumerate() {
            self.check_task(task)?;
            let slug = task.slug();
            if self.tasks[..index].iter().any(|other| other.slug() == slug) {
                let (name, data) = (task.task.name, task.dataset());
                return bad(format!("`tasks`: {name} on {data} comes twice"));
            }
        }
        Ok(())
    }

    fn check_ways(&self) -> Result<()> {
        if self.compare.len() < 2 {
            return bad("`compare`: one way alone has nothing to be compared with");
        }
        for (index, way) in self.compare.iter().enumerate() {
            let name = &way.name;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(is_plain) {
                return bad(format!(
                    "`compare`: {name:?} names no way; give letters, digits, `_` and `-`"
                ));
            }
            if self.compare[..index]
                .iter()
                .any(|other| other.name == *name)
            {
                return bad(format!("`compare`: {name} comes twice"));
            }
            if let Some(key) = SHARED.iter().find(|key| way.settings.contains_key(**key)) {
                return bad(format!(
                    "`compare.{key}`: {name} says it, but all ways have it alike"
                ));
            }
        }
        self.check_owned(
            "pretrain",
            &self.pretrain,
            &["init", "model", "length", "save"],
        )
    }

    fn check_owned(&self, key: &str, training: &Training, owned: &[&str]) -> Result<()> {
        match owned
            .iter()
            .find(|owned| training.settings.contains_key(**owned))
        {
            Some(owned) => bad(format!("`{key}.{owned}`: the study says that itself")),
            None => Ok(()),
        }
    }

    fn check_task(&self, task: &JudgedTask) -> Result<()> {
        let name = task.task.name;
        if task.task.open.is_none() {
            return bad(format!("`tasks`: no model is run on {name}"));
        }
        if task.dataset.is_some() && !task.task.takes(TaskOption::Dataset) {
            return bad(format!(
                "`tasks`: {name} has one data set alone; leave out `dataset`"
            ));
        }
        if task.candidates.is_some() && !task.task.takes(TaskOption::Candidates) {
            return bad(format!("`tasks.candidates`: {name} has no use for them"));
        }
        if let Some(finetune) = &task.finetune {
            self.check_owned("tasks.finetune", finetune, &["init", "model"])?;
        }
        let trainings = [Some(&self.pretrain), task.finetune.as_ref()];
        for training in trainings.into_iter().flatten() {
            let document = training.document()?;
            let splits = document.pointer("/data/train").and_then(Value::as_array);
            let is_test = |split: &Value| {
                split["dataset"] == task.dataset() && split["split"] == task.test.as_str()
            };
            if splits.is_some_and(|splits| splits.iter().any(is_test)) {
                let (data, split) = (task.dataset(), &task.test);
                return bad(format!(
                    "`tasks`: the test split `{split}` of {data} is learned from"
                ));
            }
        }
        Ok(())
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T> {
    Err(UsageError(what.into()).into())
}

fn yes() -> bool {
    true
}
