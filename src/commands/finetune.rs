//! `vlmerge finetune`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use evaluate::datasets::DatasetSpec;
use evaluate::tasks::{TaskOption, TaskSpec};
use train::recipe::{CheckedRecipe, TrainRecipe};

use crate::args::data::task_that_runs;
use crate::args::run::RunArgs;
use crate::output::{Output, UsageError};
use crate::training;

const EXAMPLES: &str = "\
Examples:
  vlmerge finetune --task retrieval --init merged.safetensors --data arrow --out run \\
      --set model.image_size=224
  vlmerge finetune --task vqa --init-recipe merge.yaml --data arrow --out run --device cuda
  vlmerge finetune --task linear_probe --init zerovl.safetensors --data data --out probe
  vlmerge finetune --recipe run.yaml --set optim.lr=3e-5 --out run --resume";

/// Published recipes: task, data set, text.
const PUBLISHED: [(&str, &str); 5] = [
    (
        "coco",
        include_str!("../../docs/recipes/train/finetune_coco_base.yaml"),
    ),
    (
        "f30k",
        include_str!("../../docs/recipes/train/finetune_f30k_base.yaml"),
    ),
    (
        "vqa",
        include_str!("../../docs/recipes/train/finetune_vqa_base.yaml"),
    ),
    (
        "nlvr2",
        include_str!("../../docs/recipes/train/finetune_nlvr2_base.yaml"),
    ),
    (
        "imagenet1k",
        include_str!("../../docs/recipes/train/zerovl_linear_probe.yaml"),
    ),
];

/// Flags of `vlmerge finetune`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The task; its published recipe of the base size is used
    #[arg(
        long,
        value_name = "TASK",
        value_parser = task_that_runs(),
        required_unless_present = "recipe"
    )]
    task: Option<&'static TaskSpec>,
    /// Data set of the published recipe: coco or f30k for retrieval, imagenet1k for linear_probe
    /// [default: coco; imagenet1k]
    #[arg(long, value_name = "NAME", requires = "task")]
    dataset: Option<String>,
    /// A recipe instead of the published one
    #[arg(long, value_name = "FILE", conflicts_with = "task")]
    recipe: Option<PathBuf>,
    /// The weights to start from
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "init_recipe")]
    init: Option<PathBuf>,
    /// A merge recipe to start from; it is merged in memory
    #[arg(long, value_name = "FILE")]
    init_recipe: Option<PathBuf>,
    /// Folder of arrow files; for linear_probe, of data sets with folders of classes
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokenizer: a vocab.txt or tokenizer.json, a folder with one, or a name on the hub
    #[arg(long, value_name = "NAME")]
    tokenizer: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    fn recipe(&self) -> Result<CheckedRecipe> {
        let mut settings = Vec::new();
        let quoted = |path: &Path| serde_json::json!(path.display().to_string()).to_string();
        if let Some(init) = &self.init {
            settings.push(format!("init={{checkpoint: {}}}", quoted(init)));
        }
        if let Some(recipe) = &self.init_recipe {
            settings.push(format!("init={{recipe: {}}}", quoted(recipe)));
        }
        if let Some(data) = &self.data {
            settings.push(format!("data.folder={}", quoted(data)));
        }
        if let Some(name) = &self.tokenizer {
            settings.push(format!("data.tokenizer={}", quoted(Path::new(name))));
        }
        settings.extend(self.run.settings.iter().cloned());
        if let Some(path) = &self.recipe {
            return Ok(TrainRecipe::open(path, &settings)?);
        }
        let Some(task) = self.task else {
            return Err(UsageError("give --task or --recipe".into()).into());
        };
        if self.dataset.is_some() && !task.takes(TaskOption::Dataset) {
            let what = format!("--dataset: the task {} has one data set alone", task.name);
            return Err(UsageError(what).into());
        }
        let name = self.dataset.as_deref().unwrap_or(task.dataset);
        let name = DatasetSpec::name_of(name);
        let published = PUBLISHED.iter().find(|(known, _)| *known == name);
        let (_, text) = published.ok_or_else(|| {
            UsageError(format!("no published recipe for `{name}`; give --recipe"))
        })?;
        Ok(TrainRecipe::parse(text, Path::new(name), &settings)?)
    }
}

/// A shipped recipe of a family, for models that the published recipe of a task does not go with.
fn recipe_of(family: &str) -> Option<&'static str> {
    Some(match family {
        "clip" => "clip_itc.yaml",
        "zerovl" => "zerovl.yaml",
        "flm" => "flm_retrieval_f30k.yaml",
        "eve" => "eve_coco_base.yaml",
        _ => return None,
    })
}

/// An error that says where a setting comes from which the user did not give.
fn with_origin(error: anyhow::Error, args: &Args) -> anyhow::Error {
    let Some(train::Error::Evaluate(evaluate::Error::Model(fault))) = error.downcast_ref() else {
        return error;
    };
    let (evaluate::ModelFault::IgnoredSetting { setting, family }, Some(task)) = (fault, args.task)
    else {
        return error;
    };
    let is_given = |given: &String| given.split(['=', '.']).any(|part| part.trim() == *setting);
    if args.run.settings.iter().any(is_given) {
        return error;
    }
    let which = match recipe_of(family) {
        Some(name) => format!(", such as docs/recipes/train/{name}"),
        None => String::new(),
    };
    UsageError(format!(
        "`{setting}` means nothing to models of the family {family}; the published recipe that --task {} stands for sets it, which \
         is for models of another family: give a recipe of this one by --recipe{which}",
        task.name
    ))
    .into()
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let done = training::carry_out(args.recipe()?, &args.run, output);
    done.map_err(|error| with_origin(error, &args))
}
