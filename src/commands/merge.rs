//! `vlmerge merge`, and running the recipes that other verbs write for it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args as ClapArgs, ValueEnum};
use merge::execute::write_masks;
use merge::io::WriteOptions;
use merge::lora::{ExtractTarget, combine};
use merge::recipe::{AlignExperts, ModelRef, adapters};
use merge::{MergePlan, MergeRecipe};

use crate::args::merge::Target;
use crate::args::number::parse_positive;
use crate::args::write::DTypeArg;
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge merge recipe.yaml --out merged.safetensors
  vlmerge merge recipe.yaml --out merged/ --shard-size 5GB
  vlmerge merge recipe.yaml --out merged.safetensors --dry-run
  vlmerge merge recipe.yaml --out merged.safetensors --align-experts weights
  vlmerge merge emr.yaml --out merged.safetensors --masks masks.safetensors
  vlmerge merge base+adapter --out merged.safetensors
  vlmerge merge base+one*0.5+other --out merged/
  vlmerge merge one*0.5+other --as-adapter --rank 16 --out both";

/// Flags of `vlmerge merge`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe; or a model and the low-rank adapters to merge into it: `MODEL+ADAPTER`, with a weight
    /// `MODEL+ADAPTER*0.5`
    recipe: PathBuf,
    /// Write one adapter made of several, `ADAPTER+ADAPTER*0.5`
    #[arg(long)]
    as_adapter: bool,
    /// Rank of that adapter, by singular values [default: the sum of the ranks]
    #[arg(long, value_name = "R", value_parser = parse_positive, requires = "as_adapter")]
    rank: Option<usize>,
    /// Match experts of models that have them in different orders, whatever the recipe says
    #[arg(long, value_enum, value_name = "HOW", conflicts_with = "as_adapter")]
    align_experts: Option<AlignArg>,
    /// Match the hidden units of feed-forward networks before they are merged
    #[arg(long, conflicts_with = "as_adapter")]
    align_units: bool,
    /// Also write the elements of each task, for `vlmerge task`: of `emr` and `tall_masks`
    #[arg(long, value_name = "FILE", conflicts_with = "as_adapter")]
    masks: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// The measure by which experts are matched.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlignArg {
    /// Nothing: experts of the same number are merged
    None,
    /// The cosine of their weights
    Weights,
    /// Their outputs on data, from the gram files that the recipe names as `outputs`
    Outputs,
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
    if args.target.write.dtype != DTypeArg::Keep {
        recipe.out_dtype = args.target.write.dtype.into();
    }
    if let Some(how) = args.align_experts {
        recipe.align_experts = Some(match how {
            AlignArg::None => AlignExperts::None,
            AlignArg::Weights => AlignExperts::Weights,
            AlignArg::Outputs => AlignExperts::Outputs,
        });
    }
    recipe.align_units |= args.align_units;
    match &args.masks {
        Some(masks) => run_with_masks(&recipe, masks, &args.target, output),
        None => run_recipe(&recipe, &args.target, output),
    }
}

/// As [`run_recipe`], with the masks of tasks in a file of their own, which is written first: without it the merged file
/// is a model of no task.
fn run_with_masks(
    recipe: &MergeRecipe,
    masks: &Path,
    target: &Target,
    output: &Output,
) -> Result<ExitCode> {
    let is_written = !target.print_recipe && !target.write.dry_run;
    if is_written {
        let (plan, _) = MergePlan::resolve(recipe)?;
        let options = WriteOptions {
            force: target.write.force,
            sync: !target.write.no_sync,
            ..WriteOptions::new(masks)
        };
        if let Some(out) = &target.out {
            let out = target.write.write_options(out.clone(), true);
            merge::execute::check(&plan, &out, &target.write.run_options(true))?;
        }
        let files = write_masks(&plan, &options, &target.write.run_options(true), output)?;
        for file in files {
            output.note(format!("{}: masks of tasks", file.display()));
        }
    }
    run_recipe(recipe, target, output)
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
