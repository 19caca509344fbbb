//! `vlmerge soup`.

use std::collections::BTreeMap;
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
use crate::args::judging::JudgingArgs;
use crate::args::model::ModelArgs;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study};
use crate::names::{self, Named};
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
    judging: JudgingArgs,
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
    let study = Study::open(
        (&args.data, &args.judging),
        &args.model,
        &args.results,
        on,
        output,
    )?;
    let mut finished: Vec<Finished> = Vec::new();
    let called = Called::of(&args.checkpoints)?;
    let mut measure = |of: &[PathBuf]| {
        let (name, file) = (called.name(of), called.file(of));
        let target = match of {
            [path] => Target::Named(name.clone(), path.clone()),
            _ => Target::Merge(name.clone(), Box::new(average(of))),
        };
        let point = Point {
            target,
            at: None,
            file,
        };
        let measured = study.finish(&point)?;
        let worth = study
            .worth(&measured)
            .with_context(|| format!("{name}: nothing to choose by in this split"))?;
        output.note(format!("{worth:.4}  {name}"));
        finished.push(measured);
        Ok::<_, anyhow::Error>((worth, finished.len() - 1))
    };
    let mut ranked: Vec<Soup> = Vec::new();
    for path in &args.checkpoints {
        let of = vec![path.clone()];
        let (worth, at) = measure(&of)?;
        ranked.push(Soup { of, worth, at });
    }
    // Equal ones keep the order in which they were given.
    ranked.sort_by(|a, b| b.worth.total_cmp(&a.worth));
    let mut ranked = ranked.into_iter();
    let mut soup = ranked.next().context("no checkpoint")?;
    let mut grown = vec![soup.at];
    for next in ranked {
        let of = [soup.of.as_slice(), next.of.as_slice()].concat();
        let (worth, at) = measure(&of)?;
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

/// Names of the checkpoints in results, and those of their files of predictions.
struct Called(BTreeMap<PathBuf, (String, String)>);

impl Called {
    fn of(checkpoints: &[PathBuf]) -> Result<Self> {
        let paths: Vec<Named<'_>> = (checkpoints.iter())
            .map(|path| Named::After(path))
            .collect();
        let names = names::distinct(&paths)?;
        let files = names::file_names(&names)?;
        let called = checkpoints
            .iter()
            .cloned()
            .zip(names.into_iter().zip(files));
        Ok(Self(called.collect()))
    }

    /// The name of a soup in results.
    fn name(&self, checkpoints: &[PathBuf]) -> String {
        let names = checkpoints.iter().filter_map(|path| self.0.get(path));
        let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        names.join(" + ")
    }

    /// The first part of the name of its file of predictions.
    fn file(&self, checkpoints: &[PathBuf]) -> String {
        let files = checkpoints.iter().filter_map(|path| self.0.get(path));
        let files: Vec<&str> = files.map(|(_, file)| file.as_str()).collect();
        files.join(" + ")
    }
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
        finished[soup.at].result.name
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
        let of: [PathBuf; 2] = ["a/x.safetensors".into(), "b.ckpt".into()];
        let called = Called::of(&of).expect("names");
        assert_eq!(called.file(&of), "x + b");
        assert_eq!(called.name(&of), "x.safetensors + b.ckpt");
    }
}
