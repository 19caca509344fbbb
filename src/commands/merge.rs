//! `vlmerge merge`, and what it shares with the verbs that write its recipes for it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args as ClapArgs;
use evaluate::tasks::TaskSpec;
use merge::lora::{ExtractTarget, combine};
use merge::recipe::{ModelRef, OutputDType, Parameters, UnknownKeys, adapters};
use merge::{MergePlan, MergeRecipe};

use crate::args::data::task_with_experts;
use crate::args::number::parse_positive;
use crate::args::write::WriteArgs;
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge merge recipe.yaml --out merged.safetensors
  vlmerge merge recipe.yaml --out merged/ --shard-size 5GB
  vlmerge merge recipe.yaml --out merged.safetensors --dry-run
  vlmerge merge base+adapter --out merged.safetensors
  vlmerge merge base+one*0.5+other --out merged/
  vlmerge merge one*0.5+other --as-adapter --rank 16 --out both";

/// Flags of `vlmerge merge`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe; or a model and low-rank adapters to merge into it, as `MODEL+ADAPTER`, each with a weight
    /// as `MODEL+ADAPTER*0.5`
    recipe: PathBuf,
    /// Make one adapter of several, `ADAPTER+ADAPTER*0.5`: their factors side by side, or cut to --rank
    #[arg(long)]
    as_adapter: bool,
    /// The rank of the adapter, by singular values; without it the sum of the ranks
    #[arg(long, value_name = "R", value_parser = parse_positive, requires = "as_adapter")]
    rank: Option<usize>,
    #[command(flatten)]
    target: Target,
}

/// Where the result goes, and what else may be asked of a recipe.
#[derive(Debug, ClapArgs)]
pub struct Target {
    /// The checkpoint to write, or a folder for it with configuration, tokenizer and model card
    #[arg(long, value_name = "FILE", required_unless_present_any = ["print_recipe", "dry_run"])]
    pub out: Option<PathBuf>,
    /// Print the recipe with everything filled in, and stop
    #[arg(long)]
    pub print_recipe: bool,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// The flags that `interpolate`, `arithmetic` and `regmean` have in common.
#[derive(Debug, ClapArgs)]
pub struct Source {
    #[command(flatten)]
    specific: Specific,
    #[command(flatten)]
    pub target: Target,
}

/// A modality-specific checkpoint, and how its experts are merged whatever the method.
#[derive(Debug, ClapArgs)]
pub struct Specific {
    /// The modality-specific checkpoint
    input: PathBuf,
    /// The dictionary of the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Merge the experts that this task uses, as published [default: all a block has]
    #[arg(long = "for", value_name = "TASK", id = "merge_for", value_parser = task_with_experts())]
    task: Option<&'static TaskSpec>,
    /// Do as the published program does where it differs from the paper
    #[arg(long)]
    as_published: bool,
    /// Copy keys that the layout does not know instead of refusing them
    #[arg(long)]
    copy_unknown: bool,
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
            task: self.task.and_then(|task| task.published_experts),
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

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    if args.as_adapter {
        return combine_adapters(&args, output);
    }
    let model = ModelRef::new(&args.recipe);
    let mut recipe = match model.adapter {
        Some(_) => MergeRecipe {
            merge_method: "passthrough".to_owned(),
            models: vec![model],
            ..MergeRecipe::default()
        },
        None => MergeRecipe::open(&args.recipe)?,
    };
    if args.target.write.dtype != crate::args::write::DTypeArg::Keep {
        recipe.out_dtype = args.target.write.dtype.into();
    }
    run_recipe(&recipe, &args.target, output)
}

/// Writes one adapter that does what several do together.
fn combine_adapters(args: &Args, output: &Output) -> Result<ExitCode> {
    let Some(folder) = args.target.out.clone() else {
        return Err(UsageError("--as-adapter needs --out, a folder".into()).into());
    };
    let target = ExtractTarget {
        folder,
        force: args.target.write.force,
        command: match args.rank {
            Some(rank) => format!("vlmerge merge --as-adapter --rank {rank}"),
            None => "vlmerge merge --as-adapter".to_owned(),
        },
        base: PathBuf::new(),
    };
    let found = combine(&adapters(&args.recipe), args.rank, &target, output)?;
    if output.json {
        output.json(&found)?;
    } else {
        for file in &found.files {
            output.line(file.display().to_string())?;
        }
        output.note(format!(
            "{} modules of rank {} at most; error {:.1e} of the change",
            found.n_modules, found.rank, found.relative_error
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves a recipe and prints it, prints its plan, or carries it out.
pub fn run_recipe(recipe: &MergeRecipe, target: &Target, output: &Output) -> Result<ExitCode> {
    let (plan, resolved) = MergePlan::resolve(recipe)?;
    if target.print_recipe {
        if output.json {
            output.json(&resolved)?;
        } else {
            output.text(&resolved.to_yaml()?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    plan_view::carry_out(&plan, target.out.clone(), &target.write, true, output)
}

/// The usage error of a verb that was given no target.
pub fn no_target() -> UsageError {
    UsageError("name the checkpoint to write with --out".into())
}
