//! `vlmerge distance`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use merge::distance::report::DistanceReport;
use merge::distance::{
    Distance, DistanceOptions, Grain, Keep, Metric, PairSet, RECONSTRUCTION_NOTE, checkpoint_pairs,
    expert_pairs, measure,
};
use merge::io::OpenOptions;
use merge::layouts;
use merge::quantized::open;

use crate::output::{Output, UsageError};
use crate::table::{Align, Table, significant};

const EXAMPLES: &str = "\
Examples:
  vlmerge distance specific.ckpt
  vlmerge distance specific.ckpt --seed-checkpoint seed.ckpt --keep 0.2 --per module,all
  vlmerge distance specific.ckpt --metric cosine --svg experts.svg
  vlmerge distance specific.ckpt --json > distances.json
  vlmerge distance before.safetensors after.safetensors --per tensor --json

It compares the experts of one checkpoint pair by pair, or the tensors of the same name in two. With
--seed-checkpoint it compares modality vectors (weights minus seed), else the weights themselves.
`vlmerge report distances.json --out d.html` draws what --json prints. The formulas of SSD and TSSD
are reconstructions that nobody has checked against the paper; no share for --keep is published.";

/// Flags of `vlmerge distance`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint
    input: PathBuf,
    /// Another checkpoint to compare it with
    other: Option<PathBuf>,
    /// Subtract this modality-agnostic checkpoint from both sides first
    #[arg(long, value_name = "FILE")]
    seed_checkpoint: Option<PathBuf>,
    /// Measures of distance [default: cosine,l2,ssd; with --keep also tssd]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC")]
    metric: Vec<MetricArg>,
    /// Share of elements that TSSD keeps, above 0 and at most 1; may be repeated
    #[arg(long, value_delimiter = ',', value_name = "K")]
    keep: Vec<f64>,
    /// Tensors that are pooled into one value [default: block,all; with --json also cell]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    per: Vec<GrainArg>,
    /// Write a heat map of the first metric, blocks by modules
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace an existing heat map
    #[arg(long, requires = "svg")]
    force: bool,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
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
    /// A module within a block
    Cell,
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
            GrainArg::Cell => Self::Cell,
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
        merge::io::check_file_target(svg, args.force)?;
    }
    let options = OpenOptions {
        root: args.root.clone(),
        ..OpenOptions::default()
    };
    let input = open(&args.input, &options)?;
    output.notes_of(&input);
    let other = args
        .other
        .as_ref()
        .map(|path| open(path, &options))
        .transpose()?;
    if let Some(other) = &other {
        output.notes_of(other);
    }
    let seed = args.seed_checkpoint.as_ref();
    let seed = seed
        .map(|path| open(path, &OpenOptions::default()))
        .transpose()?;
    let layout = layouts::detect(&input)?;
    let set = match &other {
        None => expert_pairs(&input, layout.as_ref(), seed.as_deref())?,
        Some(other) => checkpoint_pairs(&input, other, layout.as_ref(), seed.as_deref())?,
    };
    let grains = args.grains(output.json);
    let mut options = DistanceOptions {
        metrics,
        grains: grains.clone(),
    };
    let distances = measure(&set.pairs, &options, output)?;
    if let Some(path) = &args.svg {
        options.metrics.truncate(1);
        options.grains = vec![Grain::Cell];
        let cells = measure(&set.pairs, &options, output)?;
        let report = args.report(&set, &cells);
        let metric = report.metrics.first();
        let Some(map) = metric.and_then(|metric| report.heat_map(metric)) else {
            anyhow::bail!("no heat map can be drawn: none of the compared tensors is in a block");
        };
        merge::io::write_file(path, map.to_svg().as_bytes(), args.force)?;
        output.note(format!("heat map in {}", path.display()));
    }
    if output.json {
        output.json(&args.report(&set, &distances))?;
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

    /// The pools in the order of the flags. Reports draw cells, so JSON has them.
    fn grains(&self, is_json: bool) -> Vec<Grain> {
        match (self.per.as_slice(), is_json) {
            ([], false) => vec![Grain::Block, Grain::All],
            ([], true) => vec![Grain::Cell, Grain::Block, Grain::All],
            (asked, _) => asked.iter().map(|&grain| grain.into()).collect(),
        }
    }

    fn report(&self, set: &PairSet<'_>, distances: &[Distance]) -> DistanceReport {
        let files = [
            Some(self.input.as_path()),
            self.other.as_deref(),
            self.seed_checkpoint.as_deref(),
        ];
        DistanceReport::new(files, set, distances)
    }
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
    let stack = (distance.stack).map_or_else(String::new, |stack| format!("{stack} "));
    match (&distance.key, &distance.module, distance.block) {
        (Some(key), ..) => key.clone(),
        (None, Some(module), None) => module.clone(),
        (None, Some(module), Some(block)) => format!("{stack}{block} {module}"),
        (None, None, Some(block)) => format!("{stack}{block}"),
        (None, None, None) if distance.grain == Grain::All => "all".to_owned(),
        (None, None, None) => "outside".to_owned(),
    }
}
