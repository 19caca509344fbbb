//! Data and task: flags of every verb that runs a model on a split.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use evaluate::datasets::annotations::Annotations;
use evaluate::datasets::class_texts::ClassTexts;
use evaluate::datasets::classes::ClassSet;
use evaluate::datasets::facts::FileFacts;
use evaluate::datasets::packed::{Packed, note};
use evaluate::datasets::xvlm::JsonFiles;
use evaluate::datasets::{DATASETS, DatasetSpec, Kind};
use evaluate::measure::key_of;
use evaluate::metrics::retrieval::Ties;
use evaluate::tasks::{TASKS, Task, TaskOption, TaskOptions, TaskSpec};
use evaluate::text::Tokenizer;
use merge::remote::address::is_address;

use crate::args::judging::JudgingArgs;
use crate::args::number::parse_positive;
use crate::output::UsageError;

/// The data and the task.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// The task of the model
    #[arg(long, value_name = "TASK", value_parser = task_that_runs())]
    pub task: &'static TaskSpec,
    /// Folder of arrow files, as `vlmerge data build` writes them, or of folders with CSV tables, folders of
    /// classes, shards of webdatasets or parquet files; the latter two also by address: hf://datasets/org,
    /// s3://bucket/prefix, https://
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Data set of a task that works on several: coco, f30k, sbu, gcc, vg, or the folder of a CSV table, of
    /// splits with folders of classes, of shards or of parquet files [default: coco; imagenet for zero_shot, imagenet1k for
    /// zero_shot_classes and linear_probe]
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Part of the data set, or the names of its files, such as shard-{000..012}.tar [default: test; rest_val for vqa, dev for nlvr2, valid for zero_shot, val for
    /// zero_shot_classes and linear_probe]
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Tokenizer: a vocab.txt or tokenizer.json, a folder with one, or a name on the hub
    #[arg(long, value_name = "NAME", default_value = "bert-base-uncased")]
    pub tokenizer: String,
    /// Use only the first N images, questions or statements; of class folders, as even over the classes as can be
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub limit: Option<usize>,
    /// If an image has the same caption twice, count it once, as published code does
    #[arg(long)]
    pub without_repeats: bool,
    /// Measure a head whose number of classes differs from the data's: its classes may mean other answers
    #[arg(long)]
    pub allow_other_answers: bool,
}

/// Takes the tasks that a model can be run on, by name or alias.
pub fn task_that_runs() -> impl TypedValueParser<Value = &'static TaskSpec> {
    let wanted = TASKS.iter().filter(|task| task.open.is_some());
    let values = wanted.map(|task| {
        PossibleValue::new(task.name)
            .aliases(task.aliases)
            .help(task.about)
    });
    PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(|name| TaskSpec::find(&name))
}

/// Takes the data sets that `data build` makes.
pub fn dataset_that_is_built() -> impl TypedValueParser<Value = &'static DatasetSpec> {
    let built = DATASETS.iter().filter(|set| set.is_built());
    let values = built.map(|set| PossibleValue::new(set.name).help(set.about));
    PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(|name| {
        // The names are those of the table.
        DatasetSpec::of(&name).ok_or(format!("{name:?} is no data set"))
    })
}

impl DataArgs {
    /// The data set, by the name in its row.
    pub fn dataset(&self) -> &str {
        let name = self.dataset.as_deref().unwrap_or(self.task.dataset);
        DatasetSpec::name_of(name)
    }

    /// The split.
    pub fn split(&self) -> &str {
        self.split.as_deref().unwrap_or(self.task.default_split)
    }

    /// Refuses flags that the task has no use for. `has_ties` says whether `--ties` was given.
    fn check(&self, judging: &JudgingArgs, has_ties: bool) -> Result<()> {
        let given = [
            (TaskOption::Dataset, "--dataset", self.dataset.is_some()),
            (TaskOption::Ties, "--ties", has_ties),
            (
                TaskOption::WithoutRepeats,
                "--without-repeats",
                self.without_repeats,
            ),
            (
                TaskOption::OtherAnswers,
                "--allow-other-answers",
                self.allow_other_answers,
            ),
            (
                TaskOption::Candidates,
                "--candidates",
                judging.candidates.is_some(),
            ),
            (TaskOption::Rerank, "--rerank", judging.rerank.is_some()),
            (TaskOption::Writing, "--beams", judging.beams.is_some()),
            (
                TaskOption::Writing,
                "--length-penalty",
                judging.length_penalty.is_some(),
            ),
            (
                TaskOption::Writing,
                "--max-tokens",
                judging.max_tokens.is_some(),
            ),
        ];
        for (option, flag, is_given) in given {
            if is_given && !self.task.takes(option) {
                let task = self.task.name;
                let users = TASKS.iter().filter(|task| task.takes(option));
                let users: Vec<&str> = users.map(|task| task.name).collect();
                let users = users.join(" and ");
                let what = format!("{flag}: the task {task} has no use for it, only {users} has");
                return Err(UsageError(what).into());
            }
        }
        Ok(())
    }

    /// The tokenizer, for tasks that read texts.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let reads = self.task.reads_texts;
        Ok(reads
            .then(|| Tokenizer::open(&self.tokenizer))
            .transpose()?)
    }

    /// Opens the split for verbs that run a task's passes and do not measure.
    pub fn open(&self) -> Result<Box<dyn Task>> {
        self.open_to_judge(&JudgingArgs::default(), None)
    }

    /// Opens the split to measure on it.
    pub fn open_to_judge(
        &self,
        judging: &JudgingArgs,
        ties: Option<Ties>,
    ) -> Result<Box<dyn Task>> {
        self.check(judging, ties.is_some())?;
        let (folder, split) = (self.data.as_path(), self.split());
        // Report a missing folder as such, not as a missing file in it.
        if !is_address(folder) {
            let listed = std::fs::read_dir(folder);
            listed.with_context(|| format!("{}: cannot list", folder.display()))?;
        }
        let options = TaskOptions {
            dataset: self.dataset(),
            split,
            limit: self.limit,
            without_repeats: self.without_repeats,
            with_examples: true,
            ties: ties.unwrap_or_default(),
            allow_other_answers: self.allow_other_answers,
            writing: judging.writing()?,
            candidates: (judging.candidates).zip(judging.candidates_from.as_deref()),
            rerank: judging.rerank(),
        };
        Ok(self.task.open(&options, folder)?)
    }

    /// Facts about the files of the data, by which results of an earlier run are recognized.
    pub fn identity(&self) -> Result<Vec<FileFacts>> {
        let mut facts = self.files_of_tables()?;
        if self.task.kind == Kind::Classes {
            let set = ClassSet::open(&self.data, self.dataset(), self.split())?;
            facts.extend(set.facts()?);
            let folder = self.data.join(self.dataset());
            for name in ClassTexts::FILES.iter().filter(|_| self.task.reads_texts) {
                if let Some(text) = note(&folder.join(name))? {
                    facts.push(FileFacts {
                        name: (*name).to_owned(),
                        n_bytes: text.len() as u64,
                        hash: Some(key_of(&text.as_bytes().to_vec())),
                        changed: None,
                    });
                }
            }
        } else if let Some(packed) = Packed::find(&self.data, self.dataset(), self.split())? {
            facts.extend(packed.facts()?);
        }
        if let Some(half) = Annotations::half(&self.data, self.dataset(), self.split()) {
            let folder = self.data.join(self.dataset());
            let name = |of: &str| format!("{}/{of}", self.dataset());
            let table = half.table();
            facts.push(FileFacts::of(&name(&table), &folder.join(&table))?);
            let pictures = folder.join(half.name());
            facts.extend(FileFacts::of_folder(&name(half.name()), &pictures)?);
        }
        facts.sort();
        Ok(facts)
    }

    /// Facts about arrow files, or about JSON files and the folders of their pictures.
    fn files_of_tables(&self) -> Result<Vec<FileFacts>> {
        let set = DatasetSpec::of(self.dataset()).filter(|_| !is_address(&self.data));
        let Some((set, split)) = set.and_then(|set| Some((set, set.split(self.split()).ok()?)))
        else {
            return Ok(Vec::new());
        };
        let files = split.any_files(&self.data, set);
        let json = JsonFiles::find(&self.data, set, split).ok().flatten();
        let json = json.filter(|json| json.all() == files);
        let named = files.into_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), path)
        });
        let mut facts = FileFacts::of_all(named.collect())?;
        for (name, root) in json.iter().flat_map(|json| &json.roots) {
            facts.extend(FileFacts::of_folder(name, root)?);
        }
        Ok(facts)
    }

    /// [`identity`](Self::identity) without times: copies of the data have the same.
    pub fn content(&self) -> Result<Vec<FileFacts>> {
        let facts = self.identity()?.into_iter();
        Ok(facts.map(FileFacts::without_time).collect())
    }
}
