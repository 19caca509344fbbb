//! `vlmerge data build`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use evaluate::build::{BadPicture, BuildOptions, BuiltFile, build, build_json};
use evaluate::datasets::DatasetSpec;

use crate::args::data::dataset_that_is_built;
use crate::output::{Output, UsageError};

const EXAMPLES: &str = "\
Examples:
  vlmerge data build coco --raw downloads/coco --out arrow
  vlmerge data build vqa --raw downloads/vqa --out arrow --split val --seed 1
  vlmerge data build gcc --raw downloads/gcc --out arrow --skip-bad --json
  vlmerge data build coco --raw downloads/coco --out xvlm --format json

Raw folders have the layout of ViLT's guide to its data:
  coco   karpathy/dataset_coco.json, train2014/, val2014/
  f30k   karpathy/dataset_flickr30k.json, flickr30k-images/
  vqa    v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, train2014/, val2014/,
         test2015/
  nlvr2  nlvr2/data/*.json, images/train/*/, dev/, test1/
  sbu    annot.json, images_train/*/
  gcc    train_annot.json, val_annot.json, images_train/*/, images_val/*/
  cc3m   train_annot.json, images_train/*/; the same of cc12m
  vg     annotations/region_descriptions.json, images/VG_100K/, images/VG_100K_2/
  wikibk wikibk.<k>.txt with a text a line, or train/*.txt; val/*.txt

Where shards of a webdataset or parquet files with captions are in the raw folder (docs/formats.md),
arrow files are made of these instead: test/0.tar, data/test-00000-of-00001.parquet and so on.
Where X-VLM's JSON files are in the raw folder (coco_train.json, vqa_train.json with
answer_list.json, nlvr_train.json and so on, docs/eve.md), arrow files are made of these instead.
`coco --split pretrain` is what EVE is pre-trained on: annotations/captions_{train,val}2014.json
without the test images of karpathy/dataset_coco.json.

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
    /// The folder for the files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Kind of files: arrow files, or the JSON files of X-VLM and EVE, which name pictures in the raw folder
    #[arg(long, value_enum, default_value_t = Format::Arrow)]
    format: Format,
    /// Build only this split; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    split: Vec<String>,
    /// Skip pictures that are missing or broken, with their texts, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Seed of the order of VQA's validation images; the last 1000 become vqav2_rest_val
    /// [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Replace files that were made of other downloads
    #[arg(long)]
    force: bool,
}

/// Kinds of files to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Arrow files with their pictures
    Arrow,
    /// JSON files that name pictures
    Json,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let options = BuildOptions {
        raw: args.raw.clone(),
        out: args.out.clone(),
        splits: args.split.clone(),
        seed: args.seed.unwrap_or_default(),
        skip_bad: args.skip_bad,
        force: args.force,
    };
    if args.format == Format::Json && args.seed.is_some() {
        let what = "--seed: JSON files keep the order of the annotations; only arrow files of VQA draw one";
        return Err(UsageError(what.into()).into());
    }
    let mut told = Ok(());
    let done = |file: &BuiltFile, skipped: &[BadPicture]| {
        if told.is_ok() && !output.json {
            told = tell(file, skipped, output);
        }
    };
    let report = match args.format {
        Format::Arrow => build(args.dataset.name, &options, output, done)?,
        Format::Json => build_json(args.dataset.name, &options, output, done)?,
    };
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
