//! `vlmerge verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use merge::MergeRecipe;
use merge::io::OpenOptions;
use merge::provenance::Provenance;
use merge::verify::{Outcome, verify};
use serde_json::json;

use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge verify merged/
  vlmerge verify merged/ --against recipe.yaml
  vlmerge verify merged/ --inputs models/ --full --json

Without a recipe it checks the weights and the files beside them. With one it also computes some
elements of every tensor again from the inputs and compares them; --full compares all.";

/// Flags of `vlmerge verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint or folder that a merge wrote
    out: PathBuf,
    /// The recipe that should have made it
    #[arg(long, value_name = "RECIPE")]
    against: Option<PathBuf>,
    /// Folder of the inputs, for the recipe that the checkpoint records; repeat it for inputs of several folders
    #[arg(long, value_name = "DIR", conflicts_with = "against")]
    inputs: Vec<PathBuf>,
    /// Compare every element
    #[arg(long)]
    full: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let recipe = match (&args.against, args.inputs.as_slice()) {
        (Some(path), _) => Some(MergeRecipe::open(path)?),
        (None, []) => None,
        (None, folders) => {
            let checkpoint = merge::io::open(&args.out, &OpenOptions::default())?;
            let made = Provenance::from_metadata(&checkpoint.info().metadata);
            let recipe =
                made.and_then(|made| MergeRecipe::parse(&made.recipe, checkpoint.path()).ok());
            let Some(recipe) = recipe else {
                bail!(
                    "{}: there is no recipe in it; give it with --against",
                    args.out.display()
                );
            };
            Some(recipe.in_folders(folders))
        }
    };
    let verdict = verify(&args.out, recipe.as_ref(), args.full, output)?;
    if output.json {
        output.json(&json!({
            "schema": "vlmerge.verify/1",
            "out": args.out.display().to_string(),
            "passed": verdict.passed,
            "checks": verdict.checks,
        }))?;
    } else {
        for check in &verdict.checks {
            let outcome = match check.outcome {
                Outcome::Passed => "passed",
                Outcome::Note => "note",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            output.line(format!("{outcome:8} {}", check.name))?;
            for finding in &check.findings {
                output.line(format!("         {finding}"))?;
            }
        }
    }
    Ok(match verdict.passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
