//! `vlmerge gram`.

mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use evaluate::capture::Capture;
use evaluate::measure::key_of;
use evaluate::measure::sums::{Unfinished, rows};
use evaluate::tasks::grams::{collect, summed};
use evaluate::text::Tokenizer;
use merge::gram::{Gram, GramRecord, Shard};
use merge::io::{Aliases, Contents, WriteOptions, check_target};
use merge::layouts::GramNames;
use merge::provenance::Hashes;
use serde_json::json;
use train::collective::Collective;

use crate::args::data::DataArgs;
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::running::{ModelArgs, Target};

const EXAMPLES: &str = "\
Examples:
  vlmerge gram --checkpoint specific.ckpt --task retrieval --data arrow --split val --out coco.gram.safetensors
  vlmerge gram --checkpoint specific.ckpt --task vqa --data arrow --split train --limit 20000 --out vqa.gram.safetensors
  vlmerge gram --checkpoint specific.ckpt --task vqa --data arrow --split train --shard 1/2 --out part1.safetensors
  vlmerge gram add part1.safetensors part2.safetensors --out all.gram.safetensors
  mpirun -n 4 vlmerge gram --checkpoint specific.ckpt ...             (built with --features mpi)
  vlmerge gram export all.gram.safetensors --full --out all.pth

Then: vlmerge regmean specific.ckpt --grams coco.gram.safetensors --for irtr --out merged.ckpt

A run that is stopped goes on where it was when it is started again with the same flags.";

/// Flags of `vlmerge gram`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    files: Option<files::Verb>,
    #[command(flatten)]
    collect: Collect,
}

/// The flags of the verb itself, which are there when no subcommand is.
#[derive(Debug)]
struct Collect(Option<CollectArgs>);

impl clap::Args for Collect {
    fn augment_args(command: clap::Command) -> clap::Command {
        CollectArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        CollectArgs::augment_args_for_update(command)
    }
}

impl clap::FromArgMatches for Collect {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        // What is required has been checked by now, unless a subcommand made it optional.
        Ok(Self(CollectArgs::from_arg_matches(matches).ok()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
struct CollectArgs {
    /// The modality-specific checkpoint whose layers' inputs are summed
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The gram file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Count rows of padding too, as the published program does
    #[arg(long)]
    count_padding: bool,
    /// Layers that experts do not own, too
    #[arg(long)]
    shared: bool,
    /// One of several parts of the data, for several processes or machines; `gram add` adds them up
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// Seconds between two saves of an unfinished run
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    save_every: u64,
    /// Replace an existing target
    #[arg(long)]
    force: bool,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    match (args.files, args.collect.0) {
        (Some(verb), _) => files::run(verb, output),
        (None, Some(args)) => {
            let device = args.model.device()?;
            ranks::among(&device.clone(), output, |ranks, output| {
                cache(&args, &device, ranks, output)
            })
        }
        (None, None) => Err(UsageError("name the checkpoint with --checkpoint".into()).into()),
    }
}

fn cache(
    args: &CollectArgs,
    device: &Device,
    ranks: &dyn Collective,
    output: &Output,
) -> Result<ExitCode> {
    let write = WriteOptions {
        force: args.force,
        ..WriteOptions::new(&args.out)
    };
    let nothing = Contents {
        tensors: &[],
        aliases: &Aliases::new(),
    };
    check_target(nothing, &BTreeMap::new(), &write)?;
    let task = args.data.open(None)?;
    let tokenizer = Tokenizer::open(&args.data.tokenizer)?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = args.model.open(found, output)?;
    let model = args.model.load(&opened, device, output)?;
    let runner = args
        .model
        .runner(model.as_ref(), &tokenizer, device, output)?;
    let mut batches = task.gram_batches(runner.batch_size());
    if let Some(shard) = args.shard {
        let n_batches = batches.len();
        batches = shard.take(batches);
        if batches.is_empty() {
            let advice = format!("part {shard} is empty: there are {n_batches} batches");
            return Err(UsageError(advice).into());
        }
    }
    let n_examples = batches.iter().map(|batch| batch.n_examples() as u64).sum();
    // Every rank sums some batches; the sums are put together at the end.
    let runner = runner.shared(ranks);
    let batches = runner.own(batches);
    let size = model.input().image.side;
    let mut record = GramRecord {
        data: vec![format!("{} {}", args.data.dataset(), args.data.split())],
        task: task.spec().name.to_owned(),
        checkpoint: opened.record.files.clone(),
        n_examples,
        counts_padding: args.count_padding,
        rows: BTreeMap::new(),
        settings: BTreeMap::from([("image_size".to_owned(), size.to_string())]),
        shards: args
            .shard
            .filter(|shard| shard.of() > 1)
            .into_iter()
            .collect(),
    };
    let of = key_of(&json!({
        "record": record,
        "data": args.data.identity()?,
        "limit": args.data.limit,
        "without_repeats": args.data.without_repeats,
        "batch_size": args.model.batch_size,
        "shared": args.shared,
        "model": args.model.identity(),
        "tokenizer": key_of(&std::fs::read(tokenizer.path())?),
        "ranks": (ranks.size() > 1).then(|| [ranks.rank(), ranks.size()]),
    }));
    let unfinished = Unfinished::beside(&args.out, of, ranks);
    let (grams, from) = unfinished.read()?;
    if from > 0 {
        output.note(format!(
            "going on after {from} of {} batches",
            batches.len()
        ));
    }
    let layout = merge::layouts::detect(&opened.checkpoint)?;
    let capture = Capture::new(GramNames::of(&opened.checkpoint, layout.as_ref()))
        .counting_padding(args.count_padding)
        .with_shared(args.shared)
        .resumed(grams);
    let started = Instant::now();
    let mut saved = Instant::now();
    let mut done = from;
    let collected = collect(task.as_ref(), &runner, &capture, &batches, from, |n_done| {
        done = n_done;
        if n_done < batches.len() && saved.elapsed() >= Duration::from_secs(args.save_every) {
            unfinished.write(&capture.grams(), &record, n_done)?;
            saved = Instant::now();
        }
        Ok(())
    });
    if let Err(error) = collected {
        if done > from {
            unfinished.write(&capture.grams(), &record, done)?;
            output.note(format!(
                "{done} of {} batches are kept for the next run",
                batches.len()
            ));
        }
        return Err(error.into());
    }
    let seconds = started.elapsed().as_secs_f64();
    let Some(grams) = summed(ranks, capture.into_grams())? else {
        // What this rank has kept must stay until the sum is written.
        ranks.barrier()?;
        unfinished.remove()?;
        return Ok(ExitCode::SUCCESS);
    };
    if grams.is_empty() {
        let advice = "it has no experts: give --shared to sum the inputs of all layers";
        return Err(UsageError(format!("{}: {advice}", args.checkpoint.display())).into());
    }
    record.rows = rows(&grams);
    merge::gram::write(&grams, &record, false, &write, output)?;
    ranks.barrier()?;
    unfinished.remove()?;
    report(&args.out, &record, &grams, Some(seconds), output)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was written.
fn report(
    out: &Path,
    record: &GramRecord,
    grams: &BTreeMap<String, Gram>,
    seconds: Option<f64>,
    output: &Output,
) -> Result<()> {
    if output.json {
        return output.json(&json!({
            "file": out,
            "grams": grams.len(),
            "record": record,
            "seconds": seconds,
        }));
    }
    output.line(out.display().to_string())?;
    let time = seconds.map_or_else(String::new, |seconds| format!(" in {seconds:.1} s"));
    let padding = match record.counts_padding {
        true => "counted",
        false => "left out",
    };
    let parts: String = (record.shards.iter())
        .map(|shard| format!(", part {shard}"))
        .collect();
    output.line(format!(
        "{} gram matrices of {} examples of {}{parts}{time}; padding {padding}",
        grams.len(),
        record.n_examples,
        record.data.join(", "),
    ))
}
