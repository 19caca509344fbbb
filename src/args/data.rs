//! Data and task: flags of every verb that runs a model on a split.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use evaluate::datasets::annotations::Annotations;
use evaluate::datasets::class_texts::ClassTexts;
use evaluate::datasets::classes::ClassSet;
use evaluate::datasets::packed::{Packed, note};
use evaluate::datasets::xvlm::JsonFiles;
use evaluate::datasets::{DATASETS, DatasetSpec, Kind};
use evaluate::measure::key_of;
use evaluate::metrics::reranking::Rest;
use evaluate::metrics::retrieval::Ties;
use evaluate::tasks::{TASKS, Task, TaskOption, TaskOptions, TaskSpec};
use evaluate::text::Tokenizer;
use evaluate::writing::Writing;
use merge::remote::address::is_address;

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
    /// Ask a ranking head of the N best texts of each image and the N best images of each text alone, by the
    /// scores of another model; pairs that are not asked come behind all others
    #[arg(long, value_name = "N", value_parser = parse_positive, requires = "candidates_from")]
    pub candidates: Option<usize>,
    /// The scores that candidates are chosen by: a file of `evaluate --task retrieval --predictions DIR`
    #[arg(long, value_name = "FILE", requires = "candidates")]
    pub candidates_from: Option<PathBuf>,
    /// Rank the K best texts of each image and the K best images of each text once more, by the matching head that
    /// reads image and text together
    #[arg(long, value_name = "K", value_parser = parse_positive, conflicts_with = "candidates")]
    pub rerank: Option<usize>,
    /// Order of the items behind the K best: the one that they had, or all tied as published, where --ties decides
    /// [default: similarity]
    #[arg(long, value_name = "HOW", requires = "rerank")]
    pub rerank_rest: Option<Rest>,
    /// Texts that are pursued at once for an image; 1 is greedy [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub beams: Option<usize>,
    /// Divide the logarithm of a caption's probability by its number of tokens to this power [default: 0]
    #[arg(long, value_name = "POWER", requires = "beams")]
    pub length_penalty: Option<f64>,
    /// Tokens after which a caption ends, whatever it says [default: 30]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub max_tokens: Option<usize>,
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
    pub fn check(&self, has_ties: bool) -> Result<()> {
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
                self.candidates.is_some(),
            ),
            (TaskOption::Rerank, "--rerank", self.rerank.is_some()),
            (TaskOption::Writing, "--beams", self.beams.is_some()),
            (
                TaskOption::Writing,
                "--length-penalty",
                self.length_penalty.is_some(),
            ),
            (
                TaskOption::Writing,
                "--max-tokens",
                self.max_tokens.is_some(),
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

    /// The settings of writing captions.
    pub fn writing(&self) -> Result<Writing> {
        let usual = Writing::default();
        let length_penalty = self.length_penalty.unwrap_or(usual.length_penalty);
        if !length_penalty.is_finite() {
            return Err(UsageError("--length-penalty must be a number".into()).into());
        }
        Ok(Writing {
            beams: self.beams.unwrap_or(usual.beams),
            length_penalty,
            max_tokens: self.max_tokens.unwrap_or(usual.max_tokens),
        })
    }

    /// The number of items of each query that are ranked once more, and the order of the others.
    pub fn rerank(&self) -> Option<(usize, Rest)> {
        let rest = self.rerank_rest.unwrap_or_default();
        self.rerank.map(|k| (k, rest))
    }

    /// The tokenizer, for tasks that read texts.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let reads = self.task.reads_texts;
        Ok(reads
            .then(|| Tokenizer::open(&self.tokenizer))
            .transpose()?)
    }

    /// Opens the split.
    pub fn open(&self, ties: Option<Ties>) -> Result<Box<dyn Task>> {
        self.check(ties.is_some())?;
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
            writing: self.writing()?,
            candidates: self.candidates.zip(self.candidates_from.as_deref()),
            rerank: self.rerank(),
        };
        Ok(self.task.open(&options, folder)?)
    }

    /// The names and sizes of the files of the data, by which results of an earlier run are recognized.
    pub fn identity(&self) -> Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        let failed = || format!("{}: cannot list", self.data.display());
        let folder = match is_address(&self.data) {
            true => None,
            false => Some(std::fs::read_dir(&self.data).with_context(failed)?),
        };
        for entry in folder.into_iter().flatten() {
            let entry = entry.with_context(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".arrow") {
                files.push((name, entry.metadata().with_context(failed)?.len()));
            }
        }
        let dataset = DatasetSpec::of(self.dataset());
        let json = dataset.and_then(|set| {
            let split = set.split(self.split()).ok()?;
            JsonFiles::find(&self.data, set, split).ok()?
        });
        for path in json.iter().flat_map(JsonFiles::all) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let metadata = std::fs::metadata(&path).with_context(failed)?;
            files.push((name.into_owned(), metadata.len()));
        }
        if self.task.kind != Kind::Classes
            && let Some(packed) = Packed::find(&self.data, self.dataset(), self.split())?
        {
            files.extend(packed.sizes()?);
        }
        if self.task.kind == Kind::Classes {
            let set = ClassSet::open(&self.data, self.dataset(), self.split())?;
            files.extend(set.sizes()?);
            let folder = self.data.join(self.dataset());
            // The same length does not make them the same texts.
            for name in ClassTexts::FILES.iter().filter(|_| self.task.reads_texts) {
                if let Some(text) = note(&folder.join(name))? {
                    let key = key_of(&text.as_bytes().to_vec());
                    files.push((format!("{name} {key}"), text.len() as u64));
                }
            }
        }
        if let Some(half) = Annotations::half(&self.data, self.dataset(), self.split()) {
            let table = format!("{}/{}", self.dataset(), half.table());
            let metadata = std::fs::metadata(self.data.join(&table)).with_context(failed)?;
            files.push((table, metadata.len()));
        }
        files.sort();
        Ok(files)
    }
}
