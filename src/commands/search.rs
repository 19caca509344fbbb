//! `vlmerge search`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::measure::Finished;
use evaluate::reports::SweepPoint;
use merge::MergeRecipe;
use serde_json::json;
use train::collective::Alone;

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::args::number::parse_positive;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study};
use crate::output::{Output, UsageError};
use crate::search::{ScoreArgs, Scorer, Space, cma_es, grid};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge search recipe.yaml --task retrieval --data arrow --split val --out search.json
  vlmerge search recipe.yaml --over parameters.ratio=0:1 --trials 20 --task vqa --data arrow \\
      --out search.json
  vlmerge search recipe.yaml --grid 5 --task retrieval --data arrow --split val --out search.json
  vlmerge search recipe.yaml --out search.json --score 'python score.py {model}'
  vlmerge search recipe.yaml --out search.json --score-key results.arc_easy.acc,none --score \\
      'lm_eval --model hf --model_args pretrained={model} --tasks arc_easy --output_path {out}'
  vlmerge search recipe.yaml --out search.json --jobs 2 --minimize --score-key loss --score \\
      'env CUDA_VISIBLE_DEVICES={job} python loss.py {model}'
  vlmerge report search.json --out search.html          (the history of the search)

In the recipe, write { search: [LOW, HIGH] } in the place of each number to search. Each trial is
merged in memory and measured by RSUM, or else by the first number of the task; the greatest wins.
The best recipe is written beside the report, ready for `vlmerge merge`. Start a stopped search
again with the same flags, and it goes on.

With --score each trial is merged to a folder, as `vlmerge merge --out FOLDER/` does, and a program
scores it. The program writes JSON: to stdout, of which all or the last line is read, or to {out},
a file, or a folder with one file of results in it. --score-key names the number. The folder is
removed when the program has ended. A program that fails, takes too long or writes NaN ends the
search, and what was scored before is kept.";

/// Flags of `vlmerge search`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("task", |arg| arg.required(false).required_unless_present("score")),
    mut_arg("data", |arg| arg.required(false).required_unless_present("score"))
)]
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
    score: ScoreArgs,
    #[command(flatten)]
    data: Option<DataArgs>,
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

/// What gives trials their numbers.
enum Judge<'a> {
    /// A task that this program measures.
    Task(Box<Study<'a>>),
    /// An outside program.
    Outside(Box<Scorer<'a>>),
}

impl<'a> Judge<'a> {
    fn open(args: &'a Args, out: &'a Path, output: &'a Output) -> Result<Self> {
        if let Some(line) = &args.score.score {
            let report = (out, args.results.force);
            let scorer = Scorer::open(line, &args.score, report, output)?;
            return Ok(Self::Outside(Box::new(scorer)));
        }
        let Some(data) = &args.data else {
            return Err(UsageError("give --task and --data, or --score".into()).into());
        };
        let split = data.split();
        if split.starts_with("test") {
            let what = format!(
                "`{split}` is test data: a search chooses by validation data alone; give --split"
            );
            return Err(UsageError(what).into());
        }
        let study = Study::open(
            data,
            &args.model,
            &args.results,
            (args.model.device()?, &Alone),
            output,
        )?;
        Ok(Self::Task(Box::new(study)))
    }

    /// The number by which trials are compared: the greatest is the best.
    fn worth(&self, finished: &Finished) -> Option<f64> {
        match self {
            Self::Task(study) => study.worth(finished),
            Self::Outside(scorer) => scorer.worth(finished),
        }
    }

    /// The results of points, in their order; `said` hears of the number of each one that is finished.
    fn finish(
        &self,
        points: &[(Point, MergeRecipe)],
        said: &(dyn Fn(usize, f64) + Sync),
    ) -> Result<Vec<Finished>> {
        match self {
            Self::Task(study) => {
                let finish = |(index, (point, _)): (usize, &(Point, _))| {
                    let measured = study.finish(point)?;
                    if let Some(worth) = study.worth(&measured) {
                        said(index, worth);
                    }
                    Ok(measured)
                };
                points.iter().enumerate().map(finish).collect()
            }
            Self::Outside(scorer) => scorer.finish(points, said),
        }
    }

    fn close(&self, finished: &[Finished]) -> Result<()> {
        match self {
            Self::Task(study) => study.close(finished),
            Self::Outside(scorer) => scorer.close(finished),
        }
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let Some(out) = &args.results.out else {
        return Err(UsageError(
            "name the report with --out: it is where a stopped search goes on".into(),
        )
        .into());
    };
    let space = Space::open(&args.recipe, &args.over)?;
    let best_path = out.with_extension("best.yaml");
    merge::io::check_file_target(&best_path, true)?;
    let judge = Judge::open(&args, out, output)?;
    // A number is shown as it was measured, though the least may be the best.
    let sign = if args.score.minimize { -1.0 } else { 1.0 };
    let mut finished: Vec<Finished> = Vec::new();
    let mut trials: Vec<Trial> = Vec::new();
    let try_points = |units: &[Vec<f64>]| {
        let all: Vec<Vec<f64>> = units.iter().map(|unit| space.values(unit)).collect();
        // Near the end many points are the same to the last digit.
        let mut fresh: Vec<&Vec<f64>> = Vec::new();
        for values in &all {
            if !fresh.contains(&values) && !trials.iter().any(|trial| trial.values == *values) {
                fresh.push(values);
            }
        }
        let n_before = trials.len();
        let point = |(index, values): (usize, &&Vec<f64>)| {
            let (recipe, _) = space.at(values)?;
            let at = Some(SweepPoint {
                parameter: "trial".to_owned(),
                value: (n_before + index + 1) as f64,
                is_best: false,
            });
            let target = Target::Merge(space.name(values), Box::new(recipe.clone()));
            Ok((Point { target, at }, recipe))
        };
        let points = fresh.iter().enumerate().map(point);
        let points = points.collect::<Result<Vec<_>>>()?;
        let measured = judge.finish(&points, &|index, worth| {
            let (number, name) = (n_before + index + 1, space.name(fresh[index]));
            output.note(format!("{number:>4}  {:.4}  {name}", sign * worth));
        })?;
        for (values, measured) in fresh.into_iter().zip(measured) {
            let worth = judge.worth(&measured).with_context(|| {
                format!("{}: nothing to choose by in this split", space.name(values))
            })?;
            trials.push(Trial {
                values: values.clone(),
                worth,
                at: finished.len(),
            });
            finished.push(measured);
        }
        let worth = |values: &Vec<f64>| {
            let known = trials.iter().find(|trial| trial.values == *values);
            known
                .map(|trial| trial.worth)
                .context("a point was not tried")
        };
        all.iter().map(worth).collect()
    };
    match args.grid {
        Some(n_values) => grid(space.axes.len(), n_values, try_points)?,
        None => cma_es(space.axes.len(), args.trials, args.search_seed, try_points)?,
    }
    let best = trials
        .iter()
        .reduce(|best, next| if next.worth > best.worth { next } else { best });
    let best = best.context("no point was tried")?;
    let (_, text) = space.at(&best.values)?;
    merge::io::write_file(&best_path, text.as_bytes(), true)?;
    judge.close(&finished)?;
    let best = Trial {
        values: best.values.clone(),
        worth: sign * best.worth,
        at: best.at,
    };
    said(&space, &best, trials.len(), &best_path, &finished, output)?;
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
