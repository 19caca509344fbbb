//! `vlmerge search`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::measure::Finished;
use evaluate::reports::SweepPoint;
use serde_json::json;
use train::collective::Alone;

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::args::number::parse_positive;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study};
use crate::output::{Output, UsageError};
use crate::search::{Space, cma_es, grid};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge search recipe.yaml --task retrieval --data arrow --split val --out search.json
  vlmerge search recipe.yaml --over parameters.ratio=0:1 --trials 20 --task vqa --data arrow \\
      --out search.json
  vlmerge search recipe.yaml --grid 5 --task retrieval --data arrow --split val --out search.json
  vlmerge report search.json --out search.html          (the history of the search)

In the recipe, write { search: [LOW, HIGH] } in the place of each number to search. Each trial is
merged in memory and measured by RSUM, or else by the first number of the task; the greatest wins.
The best recipe is written beside the report, ready for `vlmerge merge`. Start a stopped search
again with the same flags, and it goes on.";

/// Flags of `vlmerge search`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The merge recipe
    recipe: PathBuf,
    /// Search this number too; may be repeated
    #[arg(long, value_name = "KEY=LOW:HIGH")]
    over: Vec<String>,
    /// Points to try by CMA-ES; it completes the last generation
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = parse_positive)]
    trials: usize,
    /// Try a grid instead: N values of each number, in all combinations
    #[arg(long, value_name = "N", value_parser = parse_positive, conflicts_with = "trials")]
    grid: Option<usize>,
    /// Seed of the search
    #[arg(long, value_name = "N", default_value_t = 0)]
    search_seed: u64,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    results: ResultArgs,
}

/// A point that was tried.
struct Trial {
    values: Vec<f64>,
    worth: f64,
    /// The place of its result.
    at: usize,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let Some(out) = &args.results.out else {
        return Err(UsageError(
            "name the report with --out: it is where a stopped search goes on".into(),
        )
        .into());
    };
    let split = args.data.split();
    if split.starts_with("test") {
        let what = format!(
            "`{split}` is test data: a search chooses by validation data alone; give --split"
        );
        return Err(UsageError(what).into());
    }
    let space = Space::open(&args.recipe, &args.over)?;
    let best_path = out.with_extension("best.yaml");
    merge::io::check_file_target(&best_path, true)?;
    let study = Study::open(
        &args.data,
        &args.model,
        &args.results,
        (args.model.device()?, &Alone),
        output,
    )?;
    let mut finished: Vec<Finished> = Vec::new();
    let mut trials: Vec<Trial> = Vec::new();
    let try_point = |unit: &[f64]| {
        let values = space.values(unit);
        // Near the end many points are the same to the last digit.
        if let Some(known) = trials.iter().find(|trial| trial.values == values) {
            return Ok(known.worth);
        }
        let name = space.name(&values);
        let (recipe, _) = space.at(&values)?;
        let point = Point {
            target: Target::Merge(name.clone(), Box::new(recipe)),
            at: Some(SweepPoint {
                parameter: "trial".to_owned(),
                value: (trials.len() + 1) as f64,
                is_best: false,
            }),
        };
        let measured = study.finish(&point)?;
        let worth = study
            .worth(&measured)
            .with_context(|| format!("{name}: nothing to choose by in this split"))?;
        output.note(format!("{:>4}  {worth:.4}  {name}", trials.len() + 1));
        trials.push(Trial {
            values,
            worth,
            at: finished.len(),
        });
        finished.push(measured);
        Ok(worth)
    };
    match args.grid {
        Some(n_values) => grid(space.axes.len(), n_values, try_point)?,
        None => cma_es(space.axes.len(), args.trials, args.search_seed, try_point)?,
    }
    let best = trials
        .iter()
        .reduce(|best, next| if next.worth > best.worth { next } else { best });
    let best = best.context("no point was tried")?;
    let (_, text) = space.at(&best.values)?;
    merge::io::write_file(&best_path, text.as_bytes(), true)?;
    study.close(&finished)?;
    said(&space, best, trials.len(), &best_path, &finished, output)?;
    Ok(ExitCode::SUCCESS)
}

fn said(
    space: &Space,
    best: &Trial,
    n_trials: usize,
    path: &Path,
    finished: &[Finished],
    output: &Output,
) -> Result<()> {
    if output.json {
        let axes = space.axes.iter().map(|axis| axis.name.as_str());
        let values: BTreeMap<&str, f64> = axes.zip(best.values.iter().copied()).collect();
        return output.json(&json!({
            "trials": n_trials,
            "best": { "values": values, "worth": best.worth, "recipe": path },
            "result": finished[best.at].result.name,
        }));
    }
    output.line(format!(
        "best of {n_trials}: {:.4} at {}",
        best.worth,
        space.name(&best.values)
    ))?;
    output.line(path.display().to_string())
}
