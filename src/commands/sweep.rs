//! `vlmerge sweep`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Result;
use evaluate::reports::SweepPoint;
use merge::MergeRecipe;
use merge::recipe::{Parameter, Parameters};

use crate::args::data::DataArgs;
use crate::args::judging::JudgingArgs;
use crate::args::merge::Specific;
use crate::args::model::ModelArgs;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study, print};
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge sweep specific.ckpt --ratio 0:1:0.1 --for retrieval --task retrieval --data arrow \\
      --split val --out sweep.json
  vlmerge sweep specific.ckpt --lambda 0.5:1:0.25 --seed-checkpoint seed.ckpt --task vqa \\
      --data arrow
  vlmerge sweep specific.ckpt --shrink 0.5:1:0.1 --grams coco.gram.safetensors --task retrieval \\
      --data arrow

Each point is merged in memory. A stopped sweep goes on when you start it again with the same --out.
Choose on validation data: the best of many points on test data is too good to be true.";

/// The most points of a grid.
const MAX_POINTS: usize = 1000;

/// Flags of `vlmerge sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group = clap::ArgGroup::new("grid").required(true))]
pub struct Args {
    #[command(flatten)]
    source: Specific,
    /// Shares of the vision expert: FROM:TO:STEP, or values with commas
    #[arg(long, value_name = "GRID", group = "grid")]
    ratio: Option<Grid>,
    /// Factors on the task vector of each expert
    #[arg(
        long,
        value_name = "GRID",
        group = "grid",
        requires = "seed_checkpoint",
        allow_hyphen_values = true
    )]
    lambda: Option<Grid>,
    /// Factors on the off-diagonal of the gram matrices
    #[arg(long, value_name = "GRID", group = "grid", requires = "grams")]
    shrink: Option<Grid>,
    /// The modality-agnostic checkpoint that the experts started from
    #[arg(long, value_name = "FILE")]
    seed_checkpoint: Option<PathBuf>,
    /// Gram matrices of the layers' inputs
    #[arg(long, value_name = "FILE")]
    grams: Option<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    results: ResultArgs,
}

/// Values of a parameter, in order.
#[derive(Clone, Debug, PartialEq)]
struct Grid(Vec<f64>);

impl FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(format!("`{text}` is not a number")),
        };
        if let [from, to, step] = text.split(':').collect::<Vec<_>>()[..] {
            let (from, to, step) = (number(from)?, number(to)?, number(step)?);
            if step <= 0.0 || to < from {
                return Err("write FROM:TO:STEP with FROM ≤ TO and a positive STEP".into());
            }
            // Half a step in a thousand is room for 0.1 not being a binary fraction.
            let n = ((to - from) / step + 5e-4).floor() as usize + 1;
            if n > MAX_POINTS {
                return Err(format!("{n} points; at most {MAX_POINTS}"));
            }
            // Rounded, so that the third point of 0:1:0.1 is 0.3 and not 0.30000000000000004.
            let rounded = |value: f64| (value * 1e9).round() / 1e9;
            return Ok(Self(
                (0..n).map(|i| rounded(from + i as f64 * step)).collect(),
            ));
        }
        Ok(Self(text.split(',').map(number).collect::<Result<_, _>>()?))
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let points = points(&args)?;
    let device = args.model.device()?;
    ranks::among(&device.clone(), output, |ranks, output| {
        let on = (device, ranks.as_ref());
        let study = Study::open(
            (&args.data, &args.judging),
            &args.model,
            &args.results,
            on,
            output,
        )?;
        let Some(report) = study.measure(&points)? else {
            return Ok(ExitCode::SUCCESS);
        };
        print(&report, &args.results, output)?;
        let mut results = report.results.iter();
        if let Some(best) = results.find(|r| r.point.as_ref().is_some_and(|p| p.is_best)) {
            output.note(format!("best: {}", best.name));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn points(args: &Args) -> Result<Vec<Point>> {
    let (method, parameter, grid) = match (&args.ratio, &args.lambda, &args.shrink) {
        (Some(grid), _, _) => ("interpolate", "ratio", grid),
        (_, Some(grid), _) => ("arithmetic", "lambda", grid),
        (_, _, Some(grid)) => ("regmean", "shrink", grid),
        _ => return Err(UsageError("give --ratio, --lambda or --shrink".into()).into()),
    };
    let point = |&value: &f64| {
        let mut parameters = Parameters::default();
        parameters.set(parameter, Parameter::Number(value));
        if let (Some(grams), "regmean") = (&args.grams, method) {
            parameters.set("grams", Parameter::Text(grams.clone()));
        }
        let seed = args
            .seed_checkpoint
            .clone()
            .filter(|_| method == "arithmetic");
        let recipe: MergeRecipe = args.source.recipe(method, seed, parameters);
        let name = format!("{method} {parameter} {value}");
        Point::new(
            Target::Merge(name, Box::new(recipe)),
            Some(SweepPoint {
                parameter: parameter.to_owned(),
                value,
                is_best: false,
            }),
        )
    };
    Ok(grid.0.iter().map(point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_holds_both_ends() {
        let grid: Grid = "0:1:0.1".parse().expect("a grid");
        assert_eq!(
            grid.0,
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
        );
        assert_eq!("0.25,0.5".parse(), Ok(Grid(vec![0.25, 0.5])));
        assert_eq!("-1:0:0.5".parse(), Ok(Grid(vec![-1.0, -0.5, 0.0])));
        assert!("0:1:0".parse::<Grid>().is_err());
        assert!("0:1:1e-9".parse::<Grid>().is_err());
        assert!("nan".parse::<Grid>().is_err());
    }
}
