//! `vlmerge score logs`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use evaluate::metrics::bootstrap::Interval;
use evaluate::outside::compare::{Better, Compared, Comparing, Contrast, compare};
use evaluate::outside::logs::{Run, Wanted};
use evaluate::outside::power::Aim;
use serde_json::json;

use super::DrawArgs;
use crate::output::Output;
use crate::table::{Align, Table};

pub const EXAMPLES: &str = "\
Examples:
  vlmerge score logs out/seed out/merged
  vlmerge score logs a/samples_arc_easy_2024-05-01T12-00-00.jsonl b/ --metric acc_norm
  vlmerge score logs a/ b/ --cluster-by doc.passage_id --resamples 10000
  vlmerge score logs a_MMBench_result.csv b_MMBench_result.csv --cluster-by category

Reads what lm_eval and lmms_eval write with --log_samples: a folder, one samples file, or one file
of results with its samples beside it; and tables of VLMEvalKit as CSV, TSV or JSON. The newest
samples of a task count. Examples are paired by doc_id, index, question_id or id. Two runs over
other examples, other contents, another version of a task or another number of shots are refused;
--common compares what both have.

The difference is B - A. Interval and p are of the paired bootstrap; --cluster-by draws examples
with the same value of a field together. p (Holm) counts all tests of the table, and decides which
model is better. McNemar's exact p is of 0 and 1 without clusters. The mean over tasks takes the
first metric of each and weighs all tasks alike.";

/// Two runs.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// The first run, a file or a folder
    a: PathBuf,
    /// The second run
    b: PathBuf,
    #[command(flatten)]
    wanted: WantedArgs,
    #[command(flatten)]
    draws: DrawArgs,
}

/// The part that is taken of two runs.
#[derive(Clone, Debug, clap::Args)]
pub struct WantedArgs {
    /// The number to compare, e.g. acc_norm, or exact_match,strict-match of a filter [default: all metrics of a task]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Field of an example, or of its `doc`, whose equal values belong together
    #[arg(long, value_name = "FIELD")]
    cluster_by: Option<String>,
    /// Compare the tasks and examples that both runs have, though versions or other examples differ
    #[arg(long)]
    common: bool,
}

impl WantedArgs {
    /// Whether anything is wanted of two runs.
    pub fn is_given(&self) -> bool {
        self.metric.is_some() || self.cluster_by.is_some() || self.common
    }

    /// Reads both runs and compares them.
    pub fn compared(&self, a: &Path, b: &Path, draws: DrawArgs) -> Result<Compared> {
        let wanted = Wanted {
            metric: self.metric.clone(),
            cluster_by: self.cluster_by.clone(),
        };
        let how = Comparing {
            n_resamples: draws.resamples,
            seed: draws.seed,
            common: self.common,
        };
        Ok(compare(
            &Run::open(a, &wanted)?,
            &Run::open(b, &wanted)?,
            &how,
        )?)
    }
}

/// Runs the subcommand.
pub fn run(args: &LogsArgs, output: &Output) -> Result<ExitCode> {
    let compared = args.wanted.compared(&args.a, &args.b, args.draws)?;
    output.say_notes(&compared.notes);
    if output.json {
        output.json(&json!({
            "a": args.a,
            "b": args.b,
            "contrasts": compared.contrasts,
            "overall": compared.overall,
            "notes": compared.notes,
            "resamples": args.draws.resamples,
            "resampling_seed": args.draws.seed,
            "cluster_by": args.wanted.cluster_by,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("A: {}", args.a.display()))?;
    output.line(format!("B: {}", args.b.display()))?;
    output.line("")?;
    output.text(&table(&compared).to_string())?;
    output.line("")?;
    for contrast in &compared.contrasts {
        output.line(verdict(contrast))?;
    }
    if let Some(overall) = &compared.overall {
        let what = format!("mean over {} tasks", overall.metrics.len());
        output.line(match overall.better {
            Some(better) => is_better(&what, better, overall.difference, overall.interval),
            None => cannot_tell(&what, overall.difference, overall.interval),
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(compared: &Compared) -> Table {
    let column = |name: &str, align| (name.to_owned(), align);
    let mut table = Table::new(vec![
        column("task", Align::Left),
        column("metric", Align::Left),
        column("n", Align::Right),
        column("clusters", Align::Right),
        column("A", Align::Right),
        column("B", Align::Right),
        column("B - A", Align::Right),
        column("95% interval", Align::Left),
        column("p", Align::Right),
        column("p (Holm)", Align::Right),
        column("McNemar", Align::Right),
    ]);
    let p = |p: Option<f64>| p.map_or_else(|| "-".to_owned(), |p| format!("{p:.4}"));
    let ends = |interval: Option<Interval>| {
        let said = |Interval { low, high }| format!("[{low:+.4}, {high:+.4}]");
        interval.map_or_else(|| "-".to_owned(), said)
    };
    for contrast in &compared.contrasts {
        table.row(vec![
            contrast.task.clone(),
            contrast.metric.clone(),
            contrast.n.to_string(),
            contrast.n_clusters.to_string(),
            format!("{:.4}", contrast.a),
            format!("{:.4}", contrast.b),
            format!("{:+.4}", contrast.difference),
            ends(contrast.interval),
            p(contrast.p),
            p(contrast.p_corrected),
            p(contrast.mcnemar.map(|test| test.p)),
        ]);
    }
    if let Some(overall) = &compared.overall {
        let blank = || "-".to_owned();
        table.row(vec![
            "mean".to_owned(),
            "first of each".to_owned(),
            blank(),
            blank(),
            format!("{:.4}", overall.a),
            format!("{:.4}", overall.b),
            format!("{:+.4}", overall.difference),
            ends(overall.interval),
            p(overall.p),
            blank(),
            blank(),
        ]);
    }
    table
}

/// A sentence on what the data tell.
fn verdict(contrast: &Contrast) -> String {
    let what = format!("{} {}", contrast.task, contrast.metric);
    if let Some(better) = contrast.better {
        return is_better(&what, better, contrast.difference, contrast.interval);
    }
    let mut said = cannot_tell(&what, contrast.difference, contrast.interval);
    let needed = Aim::new(0.05, 0.8).and_then(|aim| {
        let aim = Aim {
            design_effect: contrast.design_effect,
            ..aim
        };
        aim.examples(contrast.difference, contrast.spread())
    });
    if let Ok(n) = needed
        && n > contrast.n as f64
    {
        said.push_str(&format!(
            "; about {n} examples would tell such a difference, and there are {}",
            contrast.n
        ));
    }
    said
}

fn is_better(what: &str, better: Better, difference: f64, interval: Option<Interval>) -> String {
    let (winner, loser) = match better {
        Better::A => ("A", "B"),
        Better::B => ("B", "A"),
    };
    format!(
        "{what}: {winner} is better than {loser}; B - A is {difference:+.4}{}",
        in_words(interval)
    )
}

fn cannot_tell(what: &str, difference: f64, interval: Option<Interval>) -> String {
    format!(
        "{what}: the data cannot tell which is better; B - A is {difference:+.4}{}",
        in_words(interval)
    )
}

fn in_words(interval: Option<Interval>) -> String {
    let said = |Interval { low, high }| format!(", with 95% between {low:+.4} and {high:+.4}");
    interval.map(said).unwrap_or_default()
}
