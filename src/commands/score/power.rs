//! `vlmerge score power`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use evaluate::outside::power::{Aim, Spread};
use serde_json::json;

use super::DrawArgs;
use super::logs::WantedArgs;
use crate::args::number::parse_positive;
use crate::output::{Output, UsageError};
use crate::table::{Align, Table};

pub const EXAMPLES: &str = "\
Examples:
  vlmerge score power --difference 1 --disagreement 0.1
  vlmerge score power --examples 2000 --disagreement 0.1
  vlmerge score power --logs out/seed out/merged --difference 2
  vlmerge score power --logs out/seed out/merged --cluster-by doc.passage_id

Both models answer the same examples. The answer depends on the share of examples on which one is
right and the other wrong, not on how good they are. Give the share as --disagreement, or give two
runs as --logs: the command counts it there, with the effect of clusters. --difference is in points:
1 is 0.01 of the metric. Without it the answer is the smallest difference that the examples tell:
those of --examples, or of the runs. If a metric of the runs has no answer, for instance because the
models agree everywhere, a note says why, and the other metrics get theirs.";

/// A question of power.
#[derive(Debug, clap::Args)]
pub struct PowerArgs {
    /// The difference to tell, in points, hundredths of the metric
    #[arg(long, value_name = "POINTS")]
    difference: Option<f64>,
    /// The share of examples on which the models differ, from 0 to 1
    #[arg(long, value_name = "SHARE", conflicts_with = "logs")]
    disagreement: Option<f64>,
    /// Two runs that the share is taken from, as of `vlmerge score logs`
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    logs: Option<Vec<PathBuf>>,
    /// The number of examples
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    examples: Option<usize>,
    /// Probability of a difference where there is none; two-sided
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    alpha: f64,
    /// Probability of finding the difference
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    power: f64,
    #[command(flatten)]
    wanted: WantedArgs,
}

/// The numbers of one metric.
struct Known {
    name: String,
    spread: Spread,
    design_effect: f64,
    n: Option<usize>,
}

/// The answer to a question: a number of examples, a difference in points.
struct Answer {
    examples: Option<f64>,
    difference: Option<f64>,
}

impl Known {
    /// The examples that tell the difference that was asked for, or else the difference that the examples tell.
    fn answer(&self, difference: Option<f64>, usual: Aim) -> evaluate::Result<Answer> {
        let aim = Aim {
            design_effect: self.design_effect,
            ..usual
        };
        let n = self.n.map(|n| n as f64);
        Ok(match (difference, n) {
            (Some(points), _) => Answer {
                examples: Some(aim.examples(points / 100.0, self.spread)?),
                difference,
            },
            (None, Some(n)) => Answer {
                examples: Some(n),
                difference: aim.difference(n, self.spread)?.map(|told| 100.0 * told),
            },
            (None, None) => Answer {
                examples: None,
                difference: None,
            },
        })
    }
}

/// Runs the subcommand.
pub fn run(args: &PowerArgs, output: &Output) -> Result<ExitCode> {
    let known = known(args, output)?;
    let usual = Aim::new(args.alpha, args.power).map_err(evaluate::Error::from)?;
    let mut rows = Vec::new();
    let mut table = Table::new(
        ["", "differ on", "design effect", "examples", "difference"]
            .map(|name| (name.to_owned(), Align::Left))
            .into(),
    );
    let (mut n_answers, mut first) = (0, None);
    for of in known {
        let answer = of.answer(args.difference, usual);
        let (examples, difference, fault) = match answer {
            Ok(answer) => {
                n_answers += 1;
                (answer.examples, answer.difference, None)
            }
            Err(fault) => {
                let said = fault.to_string();
                if !of.name.is_empty() {
                    output.note(format!("note: {}: {said}", of.name));
                }
                first.get_or_insert(fault);
                (None, None, Some(said))
            }
        };
        let differ = match of.spread {
            Spread::Disagreement(share) => format!("{:.2}%", 100.0 * share),
            Spread::Deviation(sigma) => format!("deviation {sigma:.4}"),
        };
        let told = match (&fault, difference) {
            (Some(_), _) => "no answer".to_owned(),
            (None, None) => "none".to_owned(),
            (None, Some(points)) => format!("{points:.2} points"),
        };
        table.row(vec![
            of.name.clone(),
            differ,
            format!("{:.2}", of.design_effect),
            examples.map_or_else(|| "-".to_owned(), |n| format!("{n}")),
            told,
        ]);
        rows.push(json!({
            "name": of.name,
            "spread": of.spread,
            "design_effect": of.design_effect,
            "examples": examples.map(|n| n as u64),
            "difference": difference,
            "fault": fault,
        }));
    }
    // A question without any answer is an error, whatever it was asked of.
    if let (0, Some(fault)) = (n_answers, first) {
        return Err(fault.into());
    }
    if output.json {
        output.json(&json!({ "alpha": args.alpha, "power": args.power, "answers": rows }))?;
    } else {
        output.line(format!(
            "two-sided at {}, found with probability {}; both models answer the same examples",
            args.alpha, args.power
        ))?;
        output.line("")?;
        output.text(&table.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn known(args: &PowerArgs, output: &Output) -> Result<Vec<Known>> {
    if let Some([a, b]) = args.logs.as_deref() {
        let draws = DrawArgs {
            resamples: 100,
            seed: 0,
        };
        let compared = args.wanted.compared(a, b, draws)?;
        output.say_notes(&compared.notes);
        let known = compared.contrasts.iter().map(|contrast| Known {
            name: format!("{} {}", contrast.task, contrast.metric),
            spread: contrast.spread(),
            design_effect: contrast.design_effect,
            n: args.examples.or(Some(contrast.n)),
        });
        return Ok(known.collect());
    }
    let Some(share) = args.disagreement else {
        let what = "give --disagreement, the share of examples on which the models differ, or two runs as --logs";
        return Err(UsageError(what.into()).into());
    };
    if args.wanted.is_given() {
        let what = "--metric, --cluster-by and --common are of two runs: give --logs";
        return Err(UsageError(what.into()).into());
    }
    if args.difference.is_none() && args.examples.is_none() {
        return Err(UsageError("give --difference or --examples".into()).into());
    }
    Ok(vec![Known {
        name: String::new(),
        spread: Spread::Disagreement(share),
        design_effect: 1.0,
        n: args.examples,
    }])
}
