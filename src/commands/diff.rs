//! `vlmerge diff`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::diff::{DiffOptions, DiffReport, ValueDifference, diff, opened};
use merge::io::OpenOptions;

use crate::output::{Output, UsageError};
use crate::table::{Align, Table, significant};

const EXAMPLES: &str = "\
Examples:
  vlmerge diff a.safetensors b.ckpt
  vlmerge diff a.safetensors b.safetensors --tolerance 1e-6
  vlmerge diff a.safetensors b.safetensors --headers-only --json

Exit code 0: no difference beyond the tolerance. Exit code 1: a difference, or an error; an error
starts with `error:` on stderr. Two NaNs at the same place are equal; a NaN or an infinity on one
side only is a difference, whatever the tolerance. Quantized weights are compared by the numbers
that they stand for.";

/// Flags of `vlmerge diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A checkpoint
    left: PathBuf,
    /// Another checkpoint; its container may differ
    right: PathBuf,
    /// Elements up to this far apart count as equal
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    tolerance: f64,
    /// Compare names, shapes and dtypes only
    #[arg(long, conflicts_with = "tolerance")]
    headers_only: bool,
    /// Compare the stored codes of quantized weights, not the numbers that they stand for, and tensors of GGUF files under
    /// their own names
    #[arg(long)]
    raw: bool,
    /// Name of the dictionary in the first file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// The same for the second file
    #[arg(long, value_name = "ROOT")]
    other_root: Option<String>,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    if args.tolerance.is_nan() || args.tolerance < 0.0 {
        return Err(UsageError("--tolerance must not be negative".into()).into());
    }
    let open = |path: &PathBuf, root: &Option<String>| {
        let options = OpenOptions {
            root: root.clone(),
            raw: args.raw,
        };
        opened(path, &options, args.headers_only)
    };
    let left = open(&args.left, &args.root)?;
    let right = open(&args.right, &args.other_root)?;
    for checkpoint in [&left, &right] {
        output.notes_of(checkpoint);
    }
    let options = DiffOptions {
        tolerance: args.tolerance,
        headers_only: args.headers_only,
    };
    let report = diff(&left, &right, &options, output)?;
    if output.json {
        output.json(&report.to_json(&args.left, &args.right, args.tolerance))?;
    } else {
        print(&report, &args, output)?;
    }
    Ok(match report.is_equal() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print(report: &DiffReport, args: &Args, output: &Output) -> Result<()> {
    for (path, only) in [
        (&args.left, &report.only_left),
        (&args.right, &report.only_right),
    ] {
        if only.is_empty() {
            continue;
        }
        output.line(format!("only in {}: {}", path.display(), only.len()))?;
        for tensor in only {
            let (dtype, shape) = (tensor.info.dtype, &tensor.info.shape);
            output.line(format!("  {}  {dtype} {shape:?}", tensor.key))?;
        }
    }
    if !report.reshaped.is_empty() {
        output.line(format!("shape or dtype differs: {}", report.reshaped.len()))?;
        for tensor in &report.reshaped {
            output.line(format!(
                "  {}  {} {:?} -> {} {:?}",
                tensor.key,
                tensor.left.dtype,
                tensor.left.shape,
                tensor.right.dtype,
                tensor.right.shape
            ))?;
        }
    }
    if !report.values.is_empty() {
        let n_beyond = report
            .values
            .iter()
            .filter(|v| v.n_beyond_tolerance > 0)
            .count();
        output.line(format!(
            "values differ: {}, beyond the tolerance of {}: {n_beyond}",
            report.values.len(),
            args.tolerance
        ))?;
        output.text(&value_table(&report.values).to_string())?;
    }
    if report.is_equal() {
        output.line(match (args.headers_only, report.values.is_empty()) {
            (true, _) => "names, shapes and dtypes are equal",
            (false, true) => "equal",
            (false, false) => "equal within the tolerance",
        })?;
    }
    Ok(())
}

fn value_table(values: &[ValueDifference]) -> Table {
    let column = |name: &str, align| (name.to_owned(), align);
    let mut table = Table::new(vec![
        column("  tensor", Align::Left),
        column("max", Align::Right),
        column("mean", Align::Right),
        column("at", Align::Left),
        column("values there", Align::Left),
        column("different", Align::Right),
        column("not finite", Align::Right),
    ]);
    for value in values {
        let [a, b] = value.max_values;
        table.row(vec![
            format!("  {}", value.key),
            significant(value.max_abs),
            significant(value.mean_abs),
            format!("{:?}", value.max_at),
            format!("{} {}", significant(a), significant(b)),
            format!("{} of {}", value.n_different, value.n_elements),
            value.n_non_finite.to_string(),
        ]);
    }
    table
}
