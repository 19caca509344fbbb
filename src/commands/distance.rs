//! `vlmerge distance`.

use std::collections::BTreeSet;
use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use merge::distance::{
    Distance, DistanceOptions, Grain, Keep, Metric, PairSet, RECONSTRUCTION_NOTE, checkpoint_pairs,
    expert_pairs, measure,
};
use merge::io::{OpenOptions, open};
use merge::layouts;
use serde_json::json;

use crate::heat_map::{Cell, HeatMap, Panel};
use crate::output::{Output, UsageError};
use crate::table::{Align, Table, significant};

const EXAMPLES: &str = "\
Examples:
  vlmerge distance specific.ckpt
  vlmerge distance specific.ckpt --seed-checkpoint seed.ckpt --keep 0.2 --per module,all
  vlmerge distance specific.ckpt --metric cosine --svg experts.svg
  vlmerge distance before.safetensors after.safetensors --per tensor --json

With one checkpoint its experts are compared pair by pair; with two, tensors of the same name.
With --seed-checkpoint both sides are modality vectors (weights minus seed), else raw weights.
SSD and TSSD are as reconstructed; they have not been checked against the paper, and there is no
published share for --keep.";

/// Flags of `vlmerge distance`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint
    input: PathBuf,
    /// Another checkpoint to compare it with
    other: Option<PathBuf>,
    /// Measure both sides from this modality-agnostic checkpoint
    #[arg(long, value_name = "FILE")]
    seed_checkpoint: Option<PathBuf>,
    /// What to measure [default: cosine,l2,ssd and tssd if there is a --keep]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC")]
    metric: Vec<MetricArg>,
    /// Share of elements that TSSD keeps, above 0 and at most 1; may be repeated
    #[arg(long, value_delimiter = ',', value_name = "K")]
    keep: Vec<f64>,
    /// What to pool into one value
    #[arg(
        long, value_enum, value_delimiter = ',', value_name = "WHAT",
        default_values = ["block", "all"]
    )]
    per: Vec<GrainArg>,
    /// Draw blocks by modules as a heat map, for the first metric
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace an existing heat map
    #[arg(long, requires = "svg")]
    force: bool,
    /// The dictionary of the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MetricArg {
    /// Cosine dissimilarity, 0 to 2
    Cosine,
    /// Euclidean distance
    L2,
    /// Soft sign dissimilarity as reconstructed, 0 to 1
    Ssd,
    /// SSD of the largest elements as reconstructed, 0 to 1; needs --keep
    Tssd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GrainArg {
    /// Nothing: each tensor by itself
    Tensor,
    /// A module over all blocks
    Module,
    /// A block
    Block,
    /// Everything
    All,
}

impl From<GrainArg> for Grain {
    fn from(arg: GrainArg) -> Self {
        match arg {
            GrainArg::Tensor => Self::Tensor,
            GrainArg::Module => Self::Module,
            GrainArg::Block => Self::Block,
            GrainArg::All => Self::All,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let metrics = args.metrics()?;
    if let Some(svg) = &args.svg {
        check_svg_target(svg, args.force)?;
    }
    let options = OpenOptions {
        root: args.root.clone(),
    };
    let input = open(&args.input, &options)?;
    let other = args
        .other
        .as_ref()
        .map(|path| open(path, &options))
        .transpose()?;
    let seed = args.seed_checkpoint.as_ref();
    let seed = seed
        .map(|path| open(path, &OpenOptions::default()))
        .transpose()?;
    let layout = layouts::detect(&input)?;
    let set = match &other {
        None => expert_pairs(&input, layout.as_ref(), seed.as_ref())?,
        Some(other) => checkpoint_pairs(&input, other, layout.as_ref(), seed.as_ref())?,
    };
    let grains: Vec<Grain> = args.per.iter().map(|&grain| grain.into()).collect();
    let mut options = DistanceOptions {
        metrics,
        grains: grains.clone(),
    };
    let distances = measure(&set.pairs, &options, output)?;
    if let Some(path) = &args.svg {
        options.metrics.truncate(1);
        options.grains = vec![Grain::Cell];
        let cells = measure(&set.pairs, &options, output)?;
        let svg = args.heat_map(options.metrics[0], &set, &cells)?.to_svg();
        write_svg(path, args.force, &svg)?;
        output.note(format!("heat map in {}", path.display()));
    }
    if output.json {
        args.print_json(&set, &distances, output)?;
    } else {
        print_tables(&set, &grains, &distances, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The metrics asked for, in that order; `tssd` stands for one per share.
    fn metrics(&self) -> Result<Vec<Metric>> {
        let all = [
            MetricArg::Cosine,
            MetricArg::L2,
            MetricArg::Ssd,
            MetricArg::Tssd,
        ];
        let asked = match self.metric.as_slice() {
            [] => &all[..],
            asked if asked.contains(&MetricArg::Tssd) && self.keep.is_empty() => {
                return Err(UsageError(
                    "tssd needs --keep: no share of elements is published as the right one".into(),
                )
                .into());
            }
            asked if !asked.contains(&MetricArg::Tssd) && !self.keep.is_empty() => {
                return Err(UsageError("--keep is of use to the metric tssd only".into()).into());
            }
            asked => asked,
        };
        let mut metrics = Vec::new();
        for metric in asked {
            match metric {
                MetricArg::Cosine => metrics.push(Metric::Cosine),
                MetricArg::L2 => metrics.push(Metric::L2),
                MetricArg::Ssd => metrics.push(Metric::Ssd),
                MetricArg::Tssd => {
                    for &share in &self.keep {
                        metrics.push(Metric::Tssd(Keep::new(share)?));
                    }
                }
            }
        }
        Ok(metrics)
    }

    fn print_json(&self, set: &PairSet<'_>, distances: &[Distance], output: &Output) -> Result<()> {
        let metrics = distances.first().map_or(&[][..], |first| &first.values);
        let metrics = metrics.iter().map(|(metric, _)| {
            let note = metric.is_reconstruction().then_some(RECONSTRUCTION_NOTE);
            json!({ "name": metric, "note": note })
        });
        output.json(&json!({
            "input": self.input.display().to_string(),
            "other": self.other.as_ref().map(|path| path.display().to_string()),
            "seed": self.seed_checkpoint.as_ref().map(|path| path.display().to_string()),
            "operands": set.operands,
            "metrics": metrics.collect::<Vec<_>>(),
            "distances": distances,
            "skipped": set.skipped,
        }))
    }

    fn heat_map(&self, metric: Metric, set: &PairSet<'_>, cells: &[Distance]) -> Result<HeatMap> {
        let in_blocks: Vec<(usize, &str, &Distance)> = cells
            .iter()
            .filter_map(|cell| Some((cell.block?, cell.module.as_deref()?, cell)))
            .collect();
        if in_blocks.is_empty() {
            anyhow::bail!("no heat map can be drawn: none of the compared tensors is in a block");
        }
        let columns: BTreeSet<&str> = in_blocks.iter().map(|&(_, module, _)| module).collect();
        let mut panels: Vec<Panel> = Vec::new();
        for comparison in in_blocks
            .iter()
            .map(|(.., cell)| cell.comparison)
            .collect::<BTreeSet<_>>()
        {
            let cells = in_blocks
                .iter()
                .filter(|(.., cell)| cell.comparison == comparison);
            let blocks: BTreeSet<usize> = cells.clone().map(|&(block, ..)| block).collect();
            let value = |block, column| {
                let cell = cells
                    .clone()
                    .find(|&&(b, module, _)| (b, module) == (block, column));
                match cell.map(|(.., cell)| cell.values[0].1) {
                    None => Cell::Absent,
                    Some(None) => Cell::Undefined,
                    Some(Some(value)) => Cell::Value(value),
                }
            };
            let row = |block: usize| {
                let cells = columns.iter().map(|column| value(block, column)).collect();
                (block.to_string(), cells)
            };
            panels.push(Panel {
                title: comparison.to_string().replace('_', "-"),
                rows: blocks.into_iter().map(row).collect(),
            });
        }
        let mut notes = vec![match &self.other {
            None => format!("Experts of {}.", name(&self.input)),
            Some(other) => format!("{} against {}.", name(&self.input), name(other)),
        }];
        notes.push(match &self.seed_checkpoint {
            None => format!("Measured on {}.", set.operands),
            Some(seed) => format!("Measured on {}; seed: {}.", set.operands, name(seed)),
        });
        if metric.is_reconstruction() {
            notes.push(format!("{RECONSTRUCTION_NOTE}."));
        }
        if in_blocks.len() < cells.len() {
            notes.push("Tensors outside the blocks are not shown.".to_owned());
        }
        let (title, quantity) = describe(metric);
        Ok(HeatMap {
            title,
            notes,
            columns: columns.into_iter().map(str::to_owned).collect(),
            panels,
            quantity,
        })
    }
}

/// Title of a heat map, and its quantity with unit.
fn describe(metric: Metric) -> (String, String) {
    let (title, quantity) = match metric {
        Metric::Cosine => (
            "Cosine dissimilarity".to_owned(),
            "no unit; 0 same direction, 1 orthogonal, 2 opposite",
        ),
        Metric::L2 => (
            "L2 distance".to_owned(),
            "in units of the weights; grows with a tensor's size",
        ),
        Metric::Ssd => (
            "Soft sign dissimilarity (SSD)".to_owned(),
            "no unit; 0 all signs agree, 1 all pairs cancel",
        ),
        Metric::Tssd(keep) => (
            format!(
                "Truncated soft sign dissimilarity, top {} kept",
                keep.share()
            ),
            "no unit; 0 all signs agree, 1 all pairs cancel",
        ),
        other => (other.to_string(), "no unit"),
    };
    (title, quantity.to_owned())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn print_tables(
    set: &PairSet<'_>,
    grains: &[Grain],
    distances: &[Distance],
    output: &Output,
) -> Result<()> {
    output.line(format!("measured on {}", set.operands))?;
    let metrics = distances.first().map_or(&[][..], |first| &first.values);
    if metrics.iter().any(|(metric, _)| metric.is_reconstruction()) {
        output.line(RECONSTRUCTION_NOTE)?;
    }
    for &grain in grains {
        let (what, align) = match grain {
            Grain::Tensor => ("tensor", Align::Left),
            Grain::Module => ("module", Align::Left),
            Grain::Cell => ("block and module", Align::Left),
            Grain::Block => ("block", Align::Right),
            Grain::All => ("pooled", Align::Left),
        };
        let mut columns = vec![
            ("comparison".to_owned(), Align::Left),
            (what.to_owned(), align),
        ];
        columns.push(("elements".to_owned(), Align::Right));
        columns.extend(
            metrics
                .iter()
                .map(|(metric, _)| (metric.to_string(), Align::Right)),
        );
        let mut table = Table::new(columns);
        for distance in distances.iter().filter(|distance| distance.grain == grain) {
            let mut row = vec![
                distance.comparison.to_string(),
                place(distance),
                distance.n_elements.to_string(),
            ];
            row.extend(
                distance
                    .values
                    .iter()
                    .map(|(_, value)| value.map_or_else(|| "n/a".to_owned(), significant)),
            );
            table.row(row);
        }
        output.line("")?;
        output.text(&table.to_string())?;
    }
    if !set.skipped.is_empty() {
        output.note(format!(
            "{} tensors were not compared; --json lists them with the reason",
            set.skipped.len()
        ));
    }
    Ok(())
}

fn place(distance: &Distance) -> String {
    match (&distance.key, &distance.module, distance.block) {
        (Some(key), ..) => key.clone(),
        (None, Some(module), None) => module.clone(),
        (None, Some(module), Some(block)) => format!("{block} {module}"),
        (None, None, Some(block)) => block.to_string(),
        (None, None, None) if distance.grain == Grain::All => "all".to_owned(),
        (None, None, None) => "outside".to_owned(),
    }
}

/// Fails before any work if the picture could not be written.
fn check_svg_target(path: &Path, force: bool) -> Result<()> {
    if !force && path.exists() {
        return Err(merge::Error::TargetExists { path: path.into() }.into());
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if folder.is_some_and(|folder| !folder.is_dir()) {
        anyhow::bail!("{}: the folder does not exist", path.display());
    }
    Ok(())
}

fn write_svg(path: &Path, force: bool, svg: &str) -> Result<()> {
    let mut options = FileOptions::new();
    options.write(true).truncate(force);
    let options = if force {
        options.create(true)
    } else {
        options.create_new(true)
    };
    options
        .open(path)
        .and_then(|mut file| file.write_all(svg.as_bytes()))
        .with_context(|| format!("{}: cannot write the heat map", path.display()))
}
