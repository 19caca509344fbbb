//! `vlmerge search`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use evaluate::measure::{Finished, Journal};
use evaluate::reports::{FailedPoint, SweepPoint};
use serde_json::{Value, json};
use train::collective::Alone;

use crate::args::data::DataArgs;
use crate::args::judging::JudgingArgs;
use crate::args::model::ModelArgs;
use crate::args::number::parse_positive;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study};
use crate::output::{Output, UsageError};
use crate::search::{
    Candidate, FAILED, FailureArgs, Failures, Outcome, ScoreArgs, Scorer, Space, cma_es, grid,
};
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
  vlmerge search recipe.yaml --out search.json --stop-after-failures 1 --score 'sh score.sh {model}'
  vlmerge report search.json --out search.html          (the history of the search)

In the recipe, replace each number to search with { search: [LOW, HIGH] }. The search merges each
trial in memory and measures it by RSUM, or else by the first number of the task; the greatest wins.
The best recipe is written beside the report, ready for `vlmerge merge`. Start a stopped search
again with the same flags, and it goes on.

With --score each trial is merged to a folder, as `vlmerge merge --out FOLDER/` does, and a program
scores it. The program writes JSON: to stdout, of which all or the last line is read, or to {out},
a file, or a folder with one file of results in it. --score-key names the number. The folder is
removed when the program has ended. When the search ends, in whatever way, so does the program with
all that it started.

A trial has failed if its merge or its measurement fails, or if the program fails, takes too long or
writes NaN. It is kept with the reason and the program's last lines on stderr, and the search goes
on; --stop-after-failures failures in a row end it. A search that is started again tries failed
trials again, or takes them as they are with --skip-failed.";

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
    failures: FailureArgs,
    #[command(flatten)]
    data: Option<DataArgs>,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    results: ResultArgs,
}

/// A point that was tried.
struct Trial {
    values: Vec<f64>,
    /// None if it failed.
    worth: Option<f64>,
    outcome: Outcome,
}

/// The source of the trials' numbers.
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
            (data, &args.judging),
            &args.model,
            &args.results,
            (args.model.device()?, &Alone),
            output,
        )?;
        Ok(Self::Task(Box::new(study)))
    }

    /// Everything that a failure may come from but the recipe, as far as it is known.
    fn identity(&self) -> Value {
        match self {
            Self::Task(_) => Value::Null,
            Self::Outside(scorer) => scorer.identity().clone(),
        }
    }

    /// The number by which trials are compared: the greatest is the best.
    fn worth(&self, finished: &Finished) -> Option<f64> {
        match self {
            Self::Task(study) => study.worth(finished),
            Self::Outside(scorer) => scorer.worth(finished),
        }
    }

    /// The outcomes of candidates, in their order; `said` hears of the number of each one, or of its failure.
    fn finish(
        &self,
        candidates: &[Candidate],
        failures: &Failures<'_>,
        said: &(dyn Fn(usize, Result<f64, &FailedPoint>) + Sync),
    ) -> Result<Vec<Outcome>> {
        match self {
            Self::Task(study) => {
                let finish = |(index, candidate): (usize, &Candidate)| {
                    let outcome = failures.tried(candidate, || study.finish(&candidate.point))?;
                    match &outcome {
                        Ok(finished) => study
                            .worth(finished)
                            .into_iter()
                            .for_each(|worth| said(index, Ok(worth))),
                        Err(failed) => said(index, Err(failed)),
                    }
                    Ok(outcome)
                };
                candidates.iter().enumerate().map(finish).collect()
            }
            Self::Outside(scorer) => scorer.finish(candidates, failures, said),
        }
    }

    fn close(&self, finished: &[Finished], failed: &[FailedPoint]) -> Result<()> {
        match self {
            Self::Task(study) => study.close(finished, failed),
            Self::Outside(scorer) => scorer.close(finished, failed),
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
    let failures = Failures::new(
        Journal::beside(out),
        args.failures,
        judge.identity(),
        output,
    );
    // A number is shown as it was measured, though the least may be the best.
    let sign = if args.score.minimize { -1.0 } else { 1.0 };
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
        let candidate = |(index, values): (usize, &&Vec<f64>)| {
            let (recipe, text) = space.at(values)?;
            let at = Some(SweepPoint {
                parameter: "trial".to_owned(),
                value: (n_before + index + 1) as f64,
                is_best: false,
            });
            let target = Target::Merge(space.name(values), Box::new(recipe.clone()));
            Ok(Candidate {
                point: Point::new(target, at),
                recipe,
                text,
            })
        };
        let candidates = fresh.iter().enumerate().map(candidate);
        let candidates = candidates.collect::<Result<Vec<_>>>()?;
        let outcomes = judge.finish(&candidates, &failures, &|index, outcome| {
            let (number, name) = (n_before + index + 1, space.name(fresh[index]));
            output.note(match outcome {
                Ok(worth) => format!("{number:>4}  {:.4}  {name}", sign * worth),
                Err(failed) => format!("{number:>4}  failed  {}", why(failed)),
            });
        })?;
        for (values, outcome) in fresh.into_iter().zip(outcomes) {
            let worth = match &outcome {
                Ok(finished) => Some(judge.worth(finished).with_context(|| {
                    format!("{}: nothing to choose by in this split", space.name(values))
                })?),
                Err(_) => None,
            };
            trials.push(Trial {
                values: values.clone(),
                worth,
                outcome,
            });
        }
        let worth = |values: &Vec<f64>| {
            let known = trials.iter().find(|trial| trial.values == *values);
            let known = known.context("a point was not tried")?;
            Ok(known.worth.unwrap_or(FAILED))
        };
        all.iter().map(worth).collect()
    };
    match args.grid {
        Some(n_values) => grid(space.axes.len(), n_values, try_points)?,
        None => cma_es(space.axes.len(), args.trials, args.search_seed, try_points)?,
    }
    let scored = trials.iter().filter(|trial| trial.worth.is_some());
    let best = scored.reduce(|best, next| if next.worth > best.worth { next } else { best });
    let summary = Summary {
        space: &space,
        trials: &trials,
        best: best.map(|best| (best, sign * best.worth.unwrap_or_default())),
        recipe: &best_path,
    };
    let Some(best) = best else {
        summary.print(output)?;
        bail!(
            "no trial has a result: all {} failed; the same command tries them again",
            trials.len()
        );
    };
    let (_, text) = space.at(&best.values)?;
    merge::io::write_file(&best_path, text.as_bytes(), true)?;
    let finished = trials
        .iter()
        .filter_map(|trial| trial.outcome.as_ref().ok());
    judge.close(&finished.cloned().collect::<Vec<_>>(), &summary.failed())?;
    summary.print(output)?;
    Ok(ExitCode::SUCCESS)
}

/// The result of a search.
struct Summary<'a> {
    space: &'a Space,
    trials: &'a [Trial],
    /// The best trial and its number as it was measured.
    best: Option<(&'a Trial, f64)>,
    /// The file of the best recipe.
    recipe: &'a Path,
}

impl Summary<'_> {
    fn failed(&self) -> Vec<FailedPoint> {
        let failed = self.trials.iter();
        let failed = failed.filter_map(|trial| trial.outcome.as_ref().err());
        failed.cloned().collect()
    }

    fn values(&self, trial: &Trial) -> BTreeMap<&str, f64> {
        let axes = self.space.axes.iter().map(|axis| axis.name.as_str());
        axes.zip(trial.values.iter().copied()).collect()
    }

    fn json(&self) -> Value {
        let failed = self.trials.iter().enumerate();
        let failed = failed.filter_map(|(index, trial)| {
            let failed = trial.outcome.as_ref().err()?;
            Some(json!({
                "trial": index + 1,
                "values": self.values(trial),
                "reason": failed.reason,
                "stderr": failed.stderr,
            }))
        });
        let best = self.best.map(|(best, worth)| {
            json!({ "values": self.values(best), "worth": worth, "recipe": self.recipe })
        });
        json!({
            "trials": self.trials.len(),
            "failed": failed.collect::<Vec<_>>(),
            "best": best,
            "result": self.best.map(|(best, _)| self.space.name(&best.values)),
        })
    }

    fn print(&self, output: &Output) -> Result<()> {
        if output.json {
            return output.json(&self.json());
        }
        let failed = self.failed();
        if !failed.is_empty() {
            let n = self.trials.len();
            output.line(format!("{} of {n} trials failed:", failed.len()))?;
            for failed in &failed {
                output.line(format!("  {}", why(failed)))?;
            }
        }
        let Some((best, worth)) = self.best else {
            return Ok(());
        };
        output.line(format!(
            "best of {}: {worth:.4} at {}",
            self.trials.len(),
            self.space.name(&best.values)
        ))?;
        output.line(self.recipe.display().to_string())
    }
}

/// A failed trial in a line: its name, the reason, and what its program wrote last.
fn why(failed: &FailedPoint) -> String {
    let last = failed.stderr.last();
    let last = last.map_or_else(String::new, |line| format!(" ({})", line.trim()));
    format!("{}: {}{last}", failed.name, failed.reason)
}
