//! `vlmerge soup`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::measure::Finished;
use evaluate::reports::SweepPoint;
use merge::recipe::{ModelRef, Parameter, Parameters};
use merge::{MergePlan, MergeRecipe};
use serde_json::json;
use train::collective::{Alone, Collective};

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study};
use crate::output::{Output, UsageError};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge soup run1.safetensors run2.safetensors run3.safetensors --task retrieval --data arrow \\
      --split val --out soup.json
  vlmerge merge soup.best.yaml --out soup/              (writes the soup)
  vlmerge report soup.json --out soup.html              (every step of it)

A greedy soup (Wortsman et al. 2022) ranks the checkpoints by a number on validation data: RSUM, or
else the first number of the task. It starts from the best; each other one joins the average if the
number does not fall. It averages in memory and writes the recipe of the soup beside the report.
Start a stopped soup again with the same flags, and it goes on.";

/// Flags of `vlmerge soup`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Checkpoints that were fine-tuned from the same start
    #[arg(required = true, num_args = 2..)]
    checkpoints: Vec<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    results: ResultArgs,
}

/// A soup under way.
struct Soup {
    /// Its ingredients, the best first.
    of: Vec<PathBuf>,
    worth: f64,
    /// The place of its result.
    at: usize,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let Some(out) = &args.results.out else {
        let what = "name the report with --out: it is where a stopped soup goes on";
        return Err(UsageError(what.into()).into());
    };
    let split = args.data.split();
    if split.starts_with("test") {
        let what = format!(
            "`{split}` is test data: a soup chooses by validation data alone; give --split"
        );
        return Err(UsageError(what).into());
    }
    let recipe_path = out.with_extension("best.yaml");
    merge::io::check_file_target(&recipe_path, true)?;
    // Checkpoints that cannot be averaged are refused before anything is measured.
    MergePlan::resolve(&average(&args.checkpoints))?;
    let on = (args.model.device()?, &Alone as &dyn Collective);
    let study = Study::open(&args.data, &args.model, &args.results, on, output)?;
    let mut finished: Vec<Finished> = Vec::new();
    let mut measure = |target: Target| {
        let name = target.name();
        let measured = study.finish(&Point { target, at: None })?;
        let worth = study
            .worth(&measured)
            .with_context(|| format!("{name}: nothing to choose by in this split"))?;
        output.note(format!("{worth:.4}  {name}"));
        finished.push(measured);
        Ok::<_, anyhow::Error>((worth, finished.len() - 1))
    };
    let mut ranked: Vec<Soup> = Vec::new();
    for path in &args.checkpoints {
        let (worth, at) = measure(Target::File(path.clone()))?;
        let of = vec![path.clone()];
        ranked.push(Soup { of, worth, at });
    }
    // Equal ones keep the order in which they were given.
    ranked.sort_by(|a, b| b.worth.total_cmp(&a.worth));
    let mut ranked = ranked.into_iter();
    let mut soup = ranked.next().context("no checkpoint")?;
    let mut grown = vec![soup.at];
    for next in ranked {
        let of = [soup.of.as_slice(), next.of.as_slice()].concat();
        let target = Target::Merge(name_of(&of), Box::new(average(&of)));
        let (worth, at) = measure(target)?;
        if worth >= soup.worth {
            grown.push(at);
            soup = Soup { of, worth, at };
        }
    }
    // The report draws how the number grew with the soup.
    for (index, &at) in grown.iter().enumerate() {
        finished[at].result.point = Some(SweepPoint {
            parameter: "ingredients".to_owned(),
            value: (index + 1) as f64,
            is_best: false,
        });
    }
    let recipe = average(&soup.of).to_yaml()?;
    merge::io::write_file(&recipe_path, recipe.as_bytes(), true)?;
    study.close(&finished, &[])?;
    said(&soup, &args.checkpoints, &recipe_path, &finished, output)?;
    Ok(ExitCode::SUCCESS)
}

/// The recipe of an average in equal parts.
fn average(checkpoints: &[PathBuf]) -> MergeRecipe {
    let mut parameters = Parameters::default();
    parameters.set("weight", Parameter::Number(1.0));
    MergeRecipe {
        merge_method: "linear".to_owned(),
        models: checkpoints.iter().map(ModelRef::new).collect(),
        parameters,
        ..MergeRecipe::default()
    }
}

/// The name of a soup in results.
fn name_of(checkpoints: &[PathBuf]) -> String {
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    checkpoints.iter().map(name).collect::<Vec<_>>().join(" + ")
}

fn said(
    soup: &Soup,
    given: &[PathBuf],
    recipe: &Path,
    finished: &[Finished],
    output: &Output,
) -> Result<()> {
    if output.json {
        return output.json(&json!({
            "ingredients": soup.of,
            "left_out": given.iter().filter(|path| !soup.of.contains(path)).collect::<Vec<_>>(),
            "worth": soup.worth,
            "recipe": recipe,
            "result": finished[soup.at].result.name,
        }));
    }
    output.line(format!(
        "{} of {} checkpoints, {:.4}: {}",
        soup.of.len(),
        given.len(),
        soup.worth,
        name_of(&soup.of)
    ))?;
    output.line(format!("recipe: {}", recipe.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_is_a_recipe_in_equal_parts_that_can_be_read_back() {
        let recipe = average(&["a/x.safetensors".into(), "b.ckpt".into()]);
        let yaml = recipe.to_yaml().expect("written");
        assert_eq!(
            MergeRecipe::parse(&yaml, Path::new("test")).expect("read"),
            recipe
        );
        assert_eq!(
            name_of(&["a/x.safetensors".into(), "b.ckpt".into()]),
            "x.safetensors + b.ckpt"
        );
    }
}
