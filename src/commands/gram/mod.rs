//! `vlmerge gram`.

mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use evaluate::datasets::facts::FileFacts;
use evaluate::measure::grams::{GramJob, GramSums};
use evaluate::measure::key_of;
use merge::gram::{Gram, GramRecord, Shard};
use merge::provenance::Hashes;
use serde_json::json;
use train::collective::Collective;

use crate::args::data::DataArgs;
use crate::args::model::ModelArgs;
use crate::args::results::checked_file;
use crate::output::{Output, UsageError};
use crate::ranks;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge gram --checkpoint specific.ckpt --task retrieval --data arrow --split val \\
      --out coco.gram.safetensors
  vlmerge gram --checkpoint specific.ckpt --task vqa --data arrow --split train --limit 20000 \\
      --out vqa.gram.safetensors
  vlmerge gram --checkpoint specific.ckpt --task vqa --data arrow --split train --shard 1/2 \\
      --out part1.safetensors
  vlmerge gram add part1.safetensors part2.safetensors --out all.gram.safetensors
  mpirun -n 4 vlmerge gram --checkpoint specific.ckpt ...             (built with --features mpi)
  vlmerge gram export all.gram.safetensors --full --out all.pth

Then: vlmerge regmean specific.ckpt --grams coco.gram.safetensors --for retrieval --out merged.ckpt

Start a stopped run again with the same flags, and it goes on.";

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
        // Required flags have been checked by now, unless a subcommand made them optional.
        Ok(Self(CollectArgs::from_arg_matches(matches).ok()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
struct CollectArgs {
    /// The checkpoint whose layers' inputs are summed
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
    /// Sum the inputs of layers that all experts share too
    #[arg(long)]
    shared: bool,
    /// Sum the K-th of N parts of the data; `gram add` adds the parts up
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
                cache(&args, &device, ranks.as_ref(), output)
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
    let write = checked_file(&args.out, args.force)?;
    let task = args.data.open()?;
    let tokenizer = args.data.tokenizer()?;
    let vocabulary = (tokenizer.as_ref()).map(|tokenizer| std::fs::read(tokenizer.path()));
    let vocabulary = vocabulary.transpose()?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let (model, facts) = opened.load_with_record(&args.model, device, output)?;
    let runner = (args.model)
        .runner(model.as_ref(), tokenizer.as_ref(), device, output)?
        .shared(ranks);
    let vocabulary = vocabulary.map(|bytes| key_of(&bytes));
    let files = args.data.identity()?;
    // Copies of the data on several machines were not written at one time.
    let content = files.iter().cloned().map(FileFacts::without_time);
    let content: Vec<FileFacts> = content.collect();
    let reading = json!({
        "flags": args.model.identity(),
        "facts": facts,
        "input": format!("{:?}", model.input()),
        "tokenizer": vocabulary,
    });
    let chosen_by = BTreeMap::from([
        (
            "--limit".to_owned(),
            (args.data.limit).map_or_else(|| "not given".to_owned(), |limit| limit.to_string()),
        ),
        (
            "--without-repeats".to_owned(),
            args.data.without_repeats.to_string(),
        ),
        (
            "the hash of the list of data files".to_owned(),
            key_of(&content),
        ),
    ]);
    let mut sums = GramSums::open(GramJob {
        task: task.as_ref(),
        runner,
        checkpoint: &opened.checkpoint,
        files: opened.record.files.clone(),
        data: format!("{} {}", args.data.dataset(), args.data.split()),
        shard: args.shard,
        counts_padding: args.count_padding,
        with_shared: args.shared,
        identity: json!({
            "data": files,
            "limit": args.data.limit,
            "without_repeats": args.data.without_repeats,
            "model": args.model.identity(),
            "settings": opened.settings,
            "tokenizer": vocabulary,
        }),
        reading: Some(key_of(&reading)),
        chosen_by,
        out: args.out.clone(),
        save_every: Duration::from_secs(args.save_every),
    })?;
    if let (Some(shard), 0) = (args.shard, sums.n_batches()) {
        let advice = format!("part {shard} is empty: the data have fewer batches than parts");
        return Err(UsageError(advice).into());
    }
    let n_own = sums.n_own();
    if sums.n_kept() > 0 {
        output.note(format!(
            "going on after {} of {n_own} batches",
            sums.n_kept()
        ));
    }
    let started = Instant::now();
    if let Err(error) = sums.collect() {
        if sums.n_kept() > 0 {
            output.note(format!(
                "{} of {n_own} batches are kept for the next run",
                sums.n_kept()
            ));
        }
        return Err(error.into());
    }
    let seconds = started.elapsed().as_secs_f64();
    let Some((grams, record)) = sums.finish(&write)? else {
        return Ok(ExitCode::SUCCESS);
    };
    if grams.is_empty() {
        let advice = "it has no experts: give --shared to sum the inputs of all layers";
        return Err(UsageError(format!("{}: {advice}", args.checkpoint.display())).into());
    }
    report(&args.out, &record, &grams, Some(seconds), output)?;
    Ok(ExitCode::SUCCESS)
}

/// Reports the written file.
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
