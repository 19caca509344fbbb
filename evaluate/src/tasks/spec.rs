//! The table of tasks: one row says everything that a program needs to know of a task.

use std::path::Path;

use merge::layouts;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Task, captions, linear_probe, nlvr2, retrieval, vqa, zero_shot, zero_shot_classes};
use crate::datasets::{DATASETS, DatasetSpec, Kind};
use crate::metrics::reranking::Rest;
use crate::metrics::retrieval::Ties;
use crate::sample::Unit;
use crate::writing::Writing;
use crate::{Error, Result, Sample};

/// Every task. Flags, recipes, studies, journals, reports and sweeps read these rows; no other
/// place knows a task by its name.
pub const TASKS: &[TaskSpec] = &[
    retrieval::SPEC,
    vqa::SPEC,
    nlvr2::SPEC,
    zero_shot::SPEC,
    zero_shot_classes::SPEC,
    linear_probe::SPEC,
    captions::SPEC,
];

/// Opens a split of a task in a folder.
pub type OpenTask = fn(&TaskOptions<'_>, &Path) -> Result<Box<dyn Task>>;

/// A task: one row of [`TASKS`].
#[derive(Debug)]
pub struct TaskSpec {
    /// Its name in flags, recipes and reports.
    pub name: &'static str,
    /// Other names that mean the same.
    pub aliases: &'static [&'static str],
    /// Its name for people.
    pub title: &'static str,
    /// The task of a model, in a few words.
    pub about: &'static str,
    /// The kind of its data sets' rows.
    pub kind: Kind,
    /// Whether models read texts for it: of its rows, or names of classes.
    pub reads_texts: bool,
    /// Its data set; where it works on any set of its kind, the usual one.
    pub dataset: &'static str,
    /// The split that is measured unless another is named.
    pub default_split: &'static str,
    /// The number that weights are chosen by unless another is named.
    pub headline: &'static str,
    /// The numbers that it may report of a whole data set.
    pub numbers: &'static [NumberSpec],
    /// The ending of a file of predictions; `None` if the task writes none.
    pub prediction_ending: Option<&'static str>,
    /// The published choice of experts for this task.
    pub published_experts: Option<layouts::Task>,
    /// Settings of [`TaskOptions`] that only some tasks have a use for.
    pub options: &'static [TaskOption],
    /// Opens a split; `None` where only files of predictions are judged.
    pub open: Option<OpenTask>,
}

/// A number that a task reports.
#[derive(Debug)]
pub struct NumberSpec {
    /// Its name in reports, such as `tr_r1`.
    pub name: &'static str,
    /// Its name for people, such as `TR@1`.
    pub label: &'static str,
    /// The unit of its numbers.
    pub unit: Unit,
    /// Whether tables of several tasks, and curves of sweeps, show it.
    pub is_in_overview: bool,
}

/// A setting that only some tasks have a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskOption {
    /// The data set of the task's kind.
    Dataset,
    /// The treatment of equal scores.
    Ties,
    /// Whether a caption that an image has twice counts once.
    WithoutRepeats,
    /// Whether a head may have other classes than the data name.
    OtherAnswers,
    /// The settings of writing texts.
    Writing,
    /// Whether a ranking head scores chosen pairs alone.
    Candidates,
    /// Whether the best of a dual encoder are ranked once more by image and text together.
    Rerank,
}

/// The split and the settings with which a task is opened.
#[derive(Clone, Copy, Debug)]
pub struct TaskOptions<'a> {
    /// The data set.
    pub dataset: &'a str,
    /// The split.
    pub split: &'a str,
    /// The first images, questions or statements alone.
    pub limit: Option<usize>,
    /// Count a caption that an image has twice once.
    pub without_repeats: bool,
    /// Show examples of good and bad retrieval.
    pub with_examples: bool,
    /// The treatment of equal scores in retrieval.
    pub ties: Ties,
    /// Measure a head that has other classes than the data name.
    pub allow_other_answers: bool,
    /// The settings of writing captions.
    pub writing: Writing,
    /// Score only the best texts of each image and the best images of each text with a ranking head: the
    /// number of each, and the file whose scores choose them.
    pub candidates: Option<(usize, &'a Path)>,
    /// Rank this number of texts of each image and images of each text once more, the best of the dual encoder, by image and
    /// text together; and how the others stand to each other.
    pub rerank: Option<(usize, Rest)>,
}

/// A number without the rest of its row.
pub(crate) const fn number(
    name: &'static str,
    label: &'static str,
    unit: Unit,
    is_in_overview: bool,
) -> NumberSpec {
    NumberSpec {
        name,
        label,
        unit,
        is_in_overview,
    }
}

impl TaskSpec {
    /// The task of this name or alias.
    #[must_use]
    pub fn of(name: &str) -> Option<&'static Self> {
        let is_it = |task: &&TaskSpec| task.name == name || task.aliases.contains(&name);
        TASKS.iter().find(is_it)
    }

    /// The task of this name or alias.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] with the existing names.
    pub fn find(name: &str) -> Result<&'static Self> {
        Self::of(name).ok_or_else(|| Error::UnknownTask {
            name: name.into(),
            known: TASKS.iter().map(|task| task.name).collect(),
        })
    }

    /// Whether the task has a use for a setting.
    #[must_use]
    pub fn takes(&self, option: TaskOption) -> bool {
        self.options.contains(&option)
    }

    /// Data sets that the task can be opened on.
    pub fn datasets(&self) -> impl Iterator<Item = &'static DatasetSpec> {
        let (kind, own) = (self.kind, self.dataset);
        let is_free = self.takes(TaskOption::Dataset);
        let of_kind = DATASETS.iter().filter(move |set| set.kind == kind);
        of_kind.filter(move |set| is_free || set.name == own)
    }

    /// Opens a split in a folder of data sets.
    ///
    /// # Errors
    /// [`Error::NotRun`] for a task that judges files alone; when there is no such data set or
    /// split, or a file is damaged.
    pub fn open(&self, options: &TaskOptions<'_>, folder: &Path) -> Result<Box<dyn Task>> {
        match self.open {
            Some(open) => open(options, folder),
            None => Err(Error::NotRun { task: self.name }),
        }
    }

    /// The number by which results are compared: the headline number, or else the first one.
    #[must_use]
    pub fn worth(&self, sample: &Sample) -> Option<f64> {
        let quantities = &sample.quantities;
        let headline = quantities.iter().find(|q| q.name == self.headline);
        sample.value(headline.or(quantities.first())?)
    }

    /// The row of a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<&'static NumberSpec> {
        self.numbers.iter().find(|number| number.name == name)
    }
}

impl PartialEq for TaskSpec {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for TaskSpec {}

impl Serialize for TaskSpec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static TaskSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        TaskSpec::find(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole() {
        for task in TASKS {
            let name = task.name;
            assert!(!task.title.is_empty() && !task.about.is_empty(), "{name}");
            assert!(!task.default_split.is_empty(), "{name}");
            let headline = task.number(task.headline).expect("a headline number");
            assert!(headline.is_in_overview, "{name}");
            assert!(task.numbers.iter().all(|n| !n.label.is_empty()), "{name}");
            if task.open.is_some() {
                assert!(task.prediction_ending.is_some(), "{name}");
                let own = task.datasets().find(|set| set.name == task.dataset);
                let splits = own.expect("its data set").splits;
                assert!(
                    splits.iter().any(|s| s.name == task.default_split),
                    "{name}"
                );
            }
            for other in TASKS.iter().filter(|other| *other != task) {
                let names = |task: &TaskSpec| [&[task.name], task.aliases].concat();
                let shared = names(task).iter().any(|n| names(other).contains(n));
                assert!(!shared, "{name} and {}", other.name);
                for number in task.numbers {
                    // Tables find a label by the number's name.
                    let same = other.number(number.name);
                    assert!(same.is_none_or(|same| same.label == number.label), "{name}");
                }
            }
        }
    }

    #[test]
    fn names_and_aliases_lead_to_a_row_and_others_are_refused() {
        assert_eq!(TaskSpec::find("irtr").expect("a task").name, "retrieval");
        let read: &TaskSpec = serde_json::from_str("\"vqa\"").expect("a task");
        assert_eq!(serde_json::to_string(read).expect("text"), "\"vqa\"");
        let error = TaskSpec::find("vqav3").expect_err("no task");
        assert!(
            error
                .to_string()
                .contains("retrieval, vqa, nlvr2, zero_shot, zero_shot_classes, linear_probe"),
            "{error}"
        );
    }
}
