//! `vlmerge advise`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use merge::advise::{Facts, Options, Ranked, Shares, measure, ranked};
use merge::{Checkpoint, layouts, plan};
use serde_json::json;

use crate::output::{Output, UsageError};
use crate::table::{Align, Table, significant};

const EXAMPLES: &str = "\
Examples:
  vlmerge advise --base clip/ cars.safetensors pets.safetensors digits.safetensors
  vlmerge advise --base seed.ckpt vision.ckpt language.ckpt --rank 16 --json > advice.json

It measures the task vectors (fine-tuned minus base): how long they are, how they stand to each
other, where their signs oppose each other, and how much the leading left singular vectors of each
matrix have in common. The order of methods is a heuristic: published accuracies, moved by rules
that docs/advise.md lists with their sources. It is no prediction of an accuracy.";

/// Flags of `vlmerge advise`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The fine-tuned models: at least two, each a checkpoint, or MODEL+ADAPTER
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The model that they were fine-tuned from
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Singular directions of each matrix that are compared; 0 compares none
    #[arg(long, value_name = "N", default_value_t = 8)]
    rank: usize,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let Some(base) = &args.base else {
        let what = "give the base with --base: advice goes by what fine-tuning has changed";
        return Err(UsageError(what.into()).into());
    };
    if args.models.len() < 2 {
        let what = "give at least two fine-tuned models: one alone needs no merging";
        return Err(UsageError(what.into()).into());
    }
    let open = |path: &PathBuf| -> Result<Arc<Checkpoint>> {
        let (model, notes) = plan::opened(path)?;
        output.say_notes(&notes);
        Ok(model)
    };
    let base = open(base)?;
    let models: Vec<Arc<Checkpoint>> = args.models.iter().map(open).collect::<Result<_>>()?;
    let named: Vec<(String, &Checkpoint)> = (args.models.iter().zip(&models))
        .map(|(path, model)| (path.display().to_string(), model.as_ref()))
        .collect();
    let layout = layouts::detect(&base)?;
    let options = Options { rank: args.rank };
    let facts = measure(&base, &named, layout.as_ref(), &options, output)?;
    let ranking = ranked(&facts);
    if output.json {
        output.json(&json!({ "base": args.base, "facts": facts, "ranking": ranking }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_facts(&facts, output)?;
    print_ranking(&ranking, output)?;
    if !facts.skipped.is_empty() {
        let n = facts.skipped.len();
        output.note(format!(
            "{n} tensors were not compared; --json lists them with the reason"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "n/a".to_owned(), significant)
}

fn columns(first: &str, others: &[&str]) -> Vec<(String, Align)> {
    let others = others.iter().map(|name| ((*name).to_owned(), Align::Right));
    std::iter::once((first.to_owned(), Align::Left))
        .chain(others)
        .collect()
}

fn print_facts(facts: &Facts, output: &Output) -> Result<()> {
    let leading = format!("in {} directions", facts.rank);
    let names = ["norm", "over base", "changed", leading.as_str()];
    let mut table = Table::new(columns("model", &names));
    for model in &facts.models {
        table.row(vec![
            model.name.clone(),
            significant(model.norm),
            significant(model.relative_distance),
            significant(model.changed),
            or_dash(model.in_leading),
        ]);
    }
    output.text(&table.to_string())?;
    output.line("")?;
    let mut table = Table::new(columns("pair", &["cosine", "opposite signs", "overlap"]));
    for pair in &facts.pairs {
        let [a, b] = &pair.models;
        table.row(vec![
            format!("{a} and {b}"),
            or_dash(pair.cosine),
            or_dash(pair.opposite),
            or_dash(pair.overlap),
        ]);
    }
    output.text(&table.to_string())?;
    output.line("")?;
    let names = [
        "over base",
        "cosine",
        "opposite signs",
        "cancelled",
        "shared",
        "overlap",
    ];
    let mut table = Table::new(columns("block", &names));
    let mut row = |name: String, of: &Shares| {
        let n = of.relative.len().max(1) as f64;
        table.row(vec![
            name,
            significant(of.relative.iter().sum::<f64>() / n),
            or_dash(of.cosine),
            or_dash(of.opposite),
            or_dash(of.cancelled),
            or_dash(of.shared),
            or_dash(of.overlap),
        ]);
    };
    for block in &facts.blocks {
        let stack = block
            .stack
            .map_or_else(String::new, |stack| format!("{stack} "));
        let name = block
            .block
            .map_or_else(|| "outside".to_owned(), |at| format!("{stack}{at}"));
        row(name, &block.shares);
    }
    row("all".to_owned(), &facts.all);
    output.text(&table.to_string())?;
    let chance = or_dash(facts.all.overlap_by_chance);
    output.line(format!(
        "by chance, subspaces of these dimensions overlap by {chance}"
    ))
}

fn print_ranking(ranking: &[Ranked], output: &Output) -> Result<()> {
    output.line("")?;
    output.line("methods by a heuristic (docs/advise.md), the most promising first")?;
    for (number, of) in ranking.iter().enumerate() {
        let with = match of.with {
            "" => String::new(),
            with => format!(" with {with}"),
        };
        let needs = of
            .needs
            .map_or_else(String::new, |needs| format!("; needs {needs}"));
        output.line(format!(
            "{:>2}. {}{with}: {:.1}{needs}",
            number + 1,
            of.method,
            of.score
        ))?;
        output.line(format!(
            "      {:.1} published: {}",
            of.published, of.source
        ))?;
        for reason in &of.reasons {
            output.line(format!(
                "      {:+.1} {}: {} [{}]",
                reason.points, reason.rule, reason.why, reason.source
            ))?;
        }
    }
    Ok(())
}
