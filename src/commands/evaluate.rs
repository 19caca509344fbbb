//! `vlmerge evaluate`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::MergeRecipe;

use crate::args::data::DataArgs;
use crate::args::judging::JudgingArgs;
use crate::args::model::ModelArgs;
use crate::args::results::ResultArgs;
use crate::measuring::{Point, Study, print};
use crate::names::{self, Named};
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge evaluate merged.ckpt --task retrieval --dataset f30k --data arrow --out report.json
  vlmerge evaluate seed.ckpt merged.ckpt --task vqa --data arrow --split rest_val
  vlmerge evaluate seed.ckpt --merge half.yaml --merge other.yaml --task nlvr2 --data arrow
  mpirun -n 4 vlmerge evaluate seed.ckpt --task vqa --data arrow      (built with --features mpi)

Every number has a 95% interval by the bootstrap. With several checkpoints, each is tested against
the first on the same draws. A recipe is merged in memory; its result is not written.";

/// Flags of `vlmerge evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Checkpoints, in the order of the results
    checkpoints: Vec<PathBuf>,
    /// Name of a checkpoint in the results, one for each in their order [default: the file's name, with as many folders
    /// as tell it from others]
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// A recipe to merge in memory and measure; may be repeated
    #[arg(long, value_name = "RECIPE")]
    merge: Vec<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    results: ResultArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let n = args.checkpoints.len();
    if !args.name.is_empty() && args.name.len() != n {
        let what = format!(
            "{} names for {n} checkpoints; give each its --name",
            args.name.len()
        );
        return Err(UsageError(what).into());
    }
    let mut named: Vec<Named<'_>> = args.name.iter().map(|name| Named::By(name)).collect();
    let unnamed: &[PathBuf] = match named.is_empty() {
        true => args.checkpoints.as_slice(),
        false => &[],
    };
    named.extend(
        unnamed
            .iter()
            .chain(&args.merge)
            .map(|path| Named::After(path)),
    );
    let names = names::distinct(&named)?;
    let files = names::file_names(&names)?;
    let mut called = names.into_iter().zip(files);
    let mut points = Vec::new();
    for (path, (name, file)) in args.checkpoints.iter().zip(&mut called) {
        points.push(Point {
            target: Target::Named(name, path.clone()),
            at: None,
            file,
        });
    }
    for (path, (name, file)) in args.merge.iter().zip(&mut called) {
        let recipe = Box::new(MergeRecipe::open(path)?);
        points.push(Point {
            target: Target::Merge(name, recipe),
            at: None,
            file,
        });
    }
    if points.is_empty() {
        return Err(UsageError("name a checkpoint, or a recipe with --merge".into()).into());
    }
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
        if let Some(report) = study.measure(&points)? {
            print(&report, &args.results, output)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
