//! `vlmerge recipe`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use merge::MergeRecipe;
use merge::io::OpenOptions;
use merge::provenance::Provenance;
use serde_json::json;

use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge recipe merged.safetensors
  vlmerge recipe merged/ --inputs models/ > recipe.yaml
  vlmerge merge recipe.yaml --out again/

A checkpoint records the names of its inputs without their folders. Run the recipe in the folder of
the inputs, or name that folder with --inputs.";

/// Flags of `vlmerge recipe`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A checkpoint that vlmerge wrote
    input: PathBuf,
    /// Folder of the inputs, to write their paths into the recipe; repeat it for inputs of several folders
    #[arg(long, value_name = "DIR")]
    inputs: Vec<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let checkpoint = merge::io::open(&args.input, &OpenOptions::default())?;
    let path = checkpoint.path();
    let Some(made) = Provenance::from_metadata(&checkpoint.info().metadata) else {
        bail!(
            "{}: vlmerge did not write this file, so there is no recipe in it",
            path.display()
        );
    };
    let Ok(recipe) = MergeRecipe::parse(&made.recipe, path) else {
        bail!(
            "{}: made by a command, not by a recipe: {}",
            path.display(),
            made.recipe
        );
    };
    let recipe = match args.inputs.as_slice() {
        [] => recipe,
        folders => recipe.in_folders(folders),
    };
    let yaml = recipe.to_yaml()?;
    if output.json {
        output.json(&json!({ "recipe": yaml, "inputs": made.inputs }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for input in &made.inputs {
        let hash = match input.hash() {
            Some(hash) => format!("{} {}", hash.kind.title(), hash.hex),
            None => "no hash".to_owned(),
        };
        output.line(format!(
            "# {} ({} bytes), {hash}",
            comment(&input.name),
            input.n_bytes
        ))?;
    }
    output.text(&yaml)?;
    Ok(ExitCode::SUCCESS)
}

/// A name on one line.
fn comment(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
