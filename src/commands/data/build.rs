//! `vlmerge data build`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use evaluate::build::{BadPicture, BuildOptions, BuiltFile, build};
use evaluate::datasets::DatasetSpec;

use crate::args::data::dataset_that_is_built;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge data build coco --raw downloads/coco --out arrow
  vlmerge data build vqa --raw downloads/vqa --out arrow --split val --seed 1
  vlmerge data build gcc --raw downloads/gcc --out arrow --skip-bad --json

Raw folders have the layout of ViLT's guide to its data:
  coco   karpathy/dataset_coco.json, train2014/, val2014/
  f30k   karpathy/dataset_flickr30k.json, flickr30k-images/
  vqa    v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, train2014/, val2014/,
         test2015/
  nlvr2  nlvr2/data/*.json, images/train/*/, dev/, test1/
  sbu    annot.json, images_train/*/
  gcc    train_annot.json, val_annot.json, images_train/*/, images_val/*/
  vg     annotations/region_descriptions.json, images/VG_100K/, images/VG_100K_2/

Each picture is decoded once, as a check, and stored unchanged. A file gets its name when it is
complete; after an interruption, run the same command again.";

/// Flags of `vlmerge data build`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The data set
    #[arg(value_name = "DATASET", value_parser = dataset_that_is_built())]
    dataset: &'static DatasetSpec,
    /// The folder of the downloads
    #[arg(long, value_name = "DIR")]
    raw: PathBuf,
    /// The folder for the arrow files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Build only this split; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    split: Vec<String>,
    /// Skip pictures that are missing or broken, with their texts, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Seed of the order of VQA's validation images; the last 1000 become vqav2_rest_val
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Replace files that were made of other downloads
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let options = BuildOptions {
        raw: args.raw.clone(),
        out: args.out.clone(),
        splits: args.split.clone(),
        seed: args.seed,
        skip_bad: args.skip_bad,
        force: args.force,
    };
    let mut told = Ok(());
    let report = build(args.dataset.name, &options, output, |file, skipped| {
        if told.is_ok() && !output.json {
            told = tell(file, skipped, output);
        }
    })?;
    told?;
    if output.json {
        output.json(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what a file holds and what it leaves out.
fn tell(file: &BuiltFile, skipped: &[BadPicture], output: &Output) -> Result<()> {
    let was_there = if file.is_old { ", was there" } else { "" };
    let (path, n_rows) = (file.path.display(), file.n_rows);
    output.line(format!("{path}: {n_rows} rows{was_there}"))?;
    for omission in &file.left_out {
        output.line(format!("  {omission}"))?;
    }
    for bad in skipped {
        let (path, place, fault) = (bad.path.display(), &bad.place, &bad.fault);
        output.line(format!("left out: {path} ({place}): {fault}"))?;
    }
    Ok(())
}
