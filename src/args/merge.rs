//! Inputs and output of a merge: flags of every verb that merges by a recipe.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use merge::MergeRecipe;
use merge::layouts::Task;
use merge::recipe::{ModelRef, OutputDType, Parameters, UnknownKeys};

use crate::args::write::WriteArgs;

/// The target of a merge, and verbs' other wishes for a recipe.
#[derive(Debug, Args)]
pub struct Target {
    /// The checkpoint to write; a folder also gets configuration, tokenizer and model card
    #[arg(long, value_name = "FILE", required_unless_present_any = ["print_recipe", "dry_run"])]
    pub out: Option<PathBuf>,
    /// Print the recipe with every default filled in, and stop
    #[arg(long)]
    pub print_recipe: bool,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// The flags that `interpolate`, `arithmetic` and `regmean` have in common.
#[derive(Debug, Args)]
pub struct Source {
    #[command(flatten)]
    specific: Specific,
    #[command(flatten)]
    pub target: Target,
}

/// A modality-specific checkpoint, and how its experts are merged whatever the method.
#[derive(Debug, Args)]
pub struct Specific {
    /// The modality-specific checkpoint
    input: PathBuf,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Merge only the experts that this task uses, as published [default: all of each block]
    #[arg(long = "for", value_name = "TASK", id = "merge_for", value_parser = task_with_experts())]
    task: Option<Task>,
    /// Compute as the published program does where it differs from the paper
    #[arg(long)]
    as_published: bool,
    /// Copy keys that the layout does not know, instead of stopping at them
    #[arg(long)]
    copy_unknown: bool,
}

/// Takes the tasks with a published choice of experts, by name or alias.
fn task_with_experts() -> impl TypedValueParser<Value = Task> {
    let values = Task::ALL.map(|task| {
        PossibleValue::new(task.name())
            .aliases(task.aliases())
            .help(task.about())
    });
    PossibleValuesParser::new(values).try_map(|name| {
        // The names are those of the tasks.
        Task::of(&name).ok_or(format!("{name:?} is no task with a choice of experts"))
    })
}

impl Source {
    /// The recipe that says the same as the flags.
    pub fn recipe(
        &self,
        method: &str,
        base_model: Option<PathBuf>,
        parameters: Parameters,
    ) -> MergeRecipe {
        let mut recipe = self.specific.recipe(method, base_model, parameters);
        recipe.out_dtype = self.target.write.dtype.into();
        recipe
    }
}

impl Specific {
    /// The recipe that says the same as the flags.
    pub fn recipe(
        &self,
        method: &str,
        base_model: Option<PathBuf>,
        parameters: Parameters,
    ) -> MergeRecipe {
        MergeRecipe {
            merge_method: method.to_owned(),
            models: vec![ModelRef {
                root: self.root.clone(),
                ..ModelRef::new(&self.input)
            }],
            base_model: base_model.map(ModelRef::new),
            layout: None,
            task: self.task,
            experts: None,
            parameters,
            as_published: self.as_published,
            out_dtype: OutputDType::Keep,
            unknown_keys: match self.copy_unknown {
                true => UnknownKeys::Copy,
                false => UnknownKeys::Error,
            },
            ..MergeRecipe::default()
        }
    }
}
