//! `vlmerge score`.

mod judged;
mod logs;
mod meteor;
mod power;

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::metrics::bootstrap::Bootstrap;
use evaluate::metrics::retrieval::{self, Captions, Ties};
use evaluate::metrics::{captions, nlvr2, vqa};
use evaluate::{predictions, reports};

use crate::output::Output;
use crate::result_table;
use judged::Judged;

const EXAMPLES: &str = "\
Examples:
  vlmerge score retrieval --scores coco.safetensors
  vlmerge score vqa --results a.json b.json --annotations annotations.json
  vlmerge score nlvr2 --predictions predictions.csv --labels dev.json --json > dev.report.json
  vlmerge score captions --results captions.json --annotations captions_val2014.json

  vlmerge score logs out/a out/b                        (lm_eval --log_samples)
  vlmerge score power --difference 1 --disagreement 0.1

Every number has a 95% interval by the bootstrap. With several files, each is tested against the
first on the same draws.";

const RETRIEVAL_EXAMPLES: &str = "\
Examples:
  vlmerge score retrieval --scores coco.safetensors
  vlmerge score retrieval --scores seed.safetensors merged.safetensors --ties pessimistic
  vlmerge score retrieval --scores out/model.test.safetensors --folds 5

A score file is a safetensors file with the tensors `scores` (images x texts, floating point, larger
is better), `image_id` (the image of each row) and `text_image_id` (the image of each text), both
integers. An image may have any number of texts. TR: text retrieval, from an image; a hit needs one
of its texts among the k best. IR: image retrieval, from a text. RSUM: the sum of the six in
percent.
Intervals draw images, each with its texts. `evaluate --task retrieval --predictions DIR` writes a
score file. --folds N cuts the images into N parts of equal length, in the order of the file, ranks
each part by itself and averages the numbers: COCO's 1K numbers are the five folds of its 5,000 test
images.

Ties: `expected` is the mean over all orders of equal scores, `pessimistic` puts right items last,
`optimistic` first, `first` keeps the order of the file.";

const VQA_EXAMPLES: &str = "\
Examples:
  vlmerge score vqa --results results.json --annotations v2_mscoco_val2014_annotations.json
  vlmerge score vqa --results a.json b.json --annotations annotations.json
  vlmerge score vqa --results pred/model.rest_val.json --annotations annotations.json --partial

Files have the official forms; a result file is a list of {\"question_id\": 1, \"answer\": \"yes\"}.
Judge what `evaluate --task vqa --predictions DIR` writes with --partial: it answers only the
questions of a split whose answer is in the vocabulary. --questions takes the official file of the
split, or with --partial a part of it.
`accuracy` is that of the official program, with its normalization of answers; `soft_score` is that
of published training code: 0.3, 0.6, 0.9 or 1 for one, two, three or more people who gave exactly
this answer. Intervals draw images, each with its questions.";

const NLVR2_EXAMPLES: &str = "\
Examples:
  vlmerge score nlvr2 --predictions predictions.csv --labels dev.json
  vlmerge score nlvr2 --predictions a.csv b.csv --labels test1.json --resamples 10000 --seed 7

Predictions are lines such as `dev-0-2-1,True`, labels the official JSON lines. Consistency is the
share of sentences that are judged right for all their image pairs; it needs official identifiers.
Intervals draw sentences, each with its pairs.";

const CAPTIONS_EXAMPLES: &str = "\
Examples:
  vlmerge score captions --results captions.json --annotations captions_val2014.json --partial
  vlmerge score captions --results a.json b.json --annotations captions_val2014.json
  vlmerge score captions --results a.json --annotations a_val.json \\
      --meteor-jar meteor/meteor-1.5.jar

Files have the official forms; a result file is a list of {\"image_id\": 1, \"caption\": \"a dog\"}.
BLEU-1 to BLEU-4, ROUGE-L and CIDEr (CIDEr-D, times 100) equal those of the official program, with
its tokenizer. CIDEr weighs a word by how rare it is in the judged images; the bootstrap draws
images and keeps these weights. --meteor-jar adds the METEOR of the official program, without an
interval. SPICE needs a trained parser and is not computed.";

/// Flags of `vlmerge score`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

/// The task of the predictions.
#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Recall of texts and images from a score matrix
    #[command(after_help = RETRIEVAL_EXAMPLES)]
    Retrieval(RetrievalArgs),
    /// Accuracy of answers against those of people
    #[command(after_help = VQA_EXAMPLES)]
    Vqa(VqaArgs),
    /// Accuracy and consistency of true or false
    #[command(after_help = NLVR2_EXAMPLES)]
    Nlvr2(Nlvr2Args),
    /// BLEU, ROUGE-L and CIDEr of captions against those of people
    #[command(after_help = CAPTIONS_EXAMPLES)]
    Captions(CaptionsArgs),
    /// Whether one of two models is better, from their answers in another program's logs
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::LogsArgs),
    /// How many examples tell a difference between two models
    #[command(after_help = power::EXAMPLES)]
    Power(power::PowerArgs),
}

/// The draws of intervals and tests.
#[derive(Clone, Copy, Debug, clap::Args)]
struct DrawArgs {
    /// Bootstrap draws for the intervals and tests
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct RetrievalArgs {
    /// Score files; several are compared with the first
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    scores: Vec<PathBuf>,
    /// Rank of equal scores: expected, pessimistic, optimistic, first
    #[arg(long, value_name = "HOW", default_value_t)]
    ties: Ties,
    /// Rank N parts of the images apart and average: 5 for COCO's 1K rule
    #[arg(long, value_name = "N", value_parser = crate::args::number::parse_positive)]
    folds: Option<usize>,
    #[command(flatten)]
    draws: DrawArgs,
}

#[derive(Debug, clap::Args)]
struct VqaArgs {
    /// Result files; several are compared with the first
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    results: Vec<PathBuf>,
    /// The annotation file
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// The question file, to check that the annotations belong to it
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Judge only the questions that the results answer
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    draws: DrawArgs,
}

#[derive(Debug, clap::Args)]
struct Nlvr2Args {
    /// Prediction files; several are compared with the first
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    predictions: Vec<PathBuf>,
    /// The official examples, a JSON object per line
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    #[command(flatten)]
    draws: DrawArgs,
}

#[derive(Debug, clap::Args)]
struct CaptionsArgs {
    /// Result files; several are compared with the first
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    results: Vec<PathBuf>,
    /// The annotation file
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// Judge only the images that the results caption, as the official example does
    #[arg(long)]
    partial: bool,
    /// METEOR's official program, which runs by `java`; its paraphrases lie beside it in `data/`
    #[arg(long, value_name = "FILE")]
    meteor_jar: Option<PathBuf>,
    #[command(flatten)]
    draws: DrawArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let (mut judged, draws) = match &args.task {
        Task::Retrieval(args) => (score_retrieval(args)?, args.draws),
        Task::Vqa(args) => (score_vqa(args)?, args.draws),
        Task::Nlvr2(args) => (score_nlvr2(args, output)?, args.draws),
        Task::Captions(args) => (score_captions(args, output)?, args.draws),
        Task::Logs(args) => return logs::run(args, output),
        Task::Power(args) => return power::run(args, output),
    };
    let bootstrap = Bootstrap::new(draws.resamples, draws.seed)?;
    judged.setting("resamples", draws.resamples);
    judged.setting("resampling_seed", draws.seed);
    judged.setting("resampled", judged.units);
    let headline = std::mem::take(&mut judged.headline);
    let report = judged.report(&bootstrap)?;
    if output.json {
        output.json(&report)?;
    } else {
        output.line(&headline)?;
        output.line("")?;
        output.text(&result_table::table(&report).to_string())?;
        for line in result_table::legend(&report)
            .into_iter()
            .chain(result_table::ranks(&report))
        {
            output.line(line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether these are the ids of the first file, which are kept; those of other files must be the same.
fn is_first<T: PartialEq>(first: &mut Option<T>, ids: T, fault: &str) -> evaluate::Result<bool> {
    match first {
        None => {
            *first = Some(ids);
            Ok(true)
        }
        Some(first) if *first != ids => Err(evaluate::Error::NotPaired {
            fault: fault.into(),
        }),
        Some(_) => Ok(false),
    }
}

fn score_retrieval(args: &RetrievalArgs) -> Result<Judged> {
    let mut first: Option<(Vec<i64>, Vec<i64>)> = None;
    let mut judged = Judged::new("retrieval", "images");
    judged.setting("ties", args.ties.to_string());
    if let Some(folds) = args.folds {
        judged.setting("folds", folds);
    }
    for path in &args.scores {
        let of_file = || path.display().to_string();
        let file = predictions::retrieval::ScoreFile::open(path)?;
        let captions =
            Captions::new(&file.image_ids, &file.text_image_ids).with_context(of_file)?;
        let ids = (file.image_ids.clone(), file.text_image_ids.clone());
        let fault = "the images and texts are others, or in another order";
        if is_first(&mut first, ids, fault).with_context(of_file)? {
            let (n_images, n_texts) = captions.shape();
            let folds = args.folds.map(|n| format!(" in {n} folds"));
            judged.headline = format!(
                "{n_images} images, {n_texts} texts{}; ties: {}",
                folds.unwrap_or_default(),
                args.ties
            );
            judged.count("images", n_images);
            judged.count("texts", n_texts);
        }
        if let Some(n_folds) = args.folds {
            let sample = file.folds(n_folds, args.ties).with_context(of_file)?;
            judged.add(path, sample, Vec::new());
            continue;
        }
        let standings = file.standings(&captions).with_context(of_file)?;
        let sample = retrieval::sample(&standings, &captions, args.ties);
        judged.add(path, sample, reports::ranks(&standings, args.ties));
    }
    Ok(judged)
}

fn score_vqa(args: &VqaArgs) -> Result<Judged> {
    let annotations = predictions::vqa::read_annotations(&args.annotations)?;
    if let Some(questions) = &args.questions {
        predictions::vqa::check_questions(
            questions,
            &annotations,
            &args.annotations,
            args.partial,
        )?;
    }
    let mut judged = Judged::new("vqa", "images");
    judged.setting("annotations", args.annotations.display().to_string());
    if let Some(questions) = &args.questions {
        judged.setting("questions", questions.display().to_string());
    }
    judged.setting("partial", args.partial);
    let mut first: Option<Vec<i64>> = None;
    for path in &args.results {
        let results = predictions::vqa::read_results(path)?;
        let asked = match args.partial {
            true => Cow::Owned(predictions::vqa::answered(path, &results, &annotations)?),
            false => Cow::Borrowed(&annotations[..]),
        };
        let ids: Vec<i64> = (asked.iter())
            .map(|annotation| annotation.question_id)
            .collect();
        let of_file = || path.display().to_string();
        let fault = "the answers are to other questions";
        if is_first(&mut first, ids, fault).with_context(of_file)? {
            judged.headline = match args.partial {
                true => format!("{} of {} questions", asked.len(), annotations.len()),
                false => format!("{} questions", asked.len()),
            };
            judged.count("questions", asked.len());
        }
        let questions = predictions::vqa::judge(path, &results, &asked, &args.annotations)?;
        judged.add(path, vqa::sample(&questions), Vec::new());
    }
    Ok(judged)
}

fn score_nlvr2(args: &Nlvr2Args, output: &Output) -> Result<Judged> {
    let labels = predictions::nlvr2::read_labels(&args.labels)?;
    let mut judged = Judged::new("nlvr2", "sentences");
    judged.setting("labels", args.labels.display().to_string());
    judged.headline = format!("{} examples", labels.examples.len());
    judged.count("examples", labels.examples.len());
    for path in &args.predictions {
        let found = predictions::nlvr2::read_predictions(path)?;
        let verdicts = predictions::nlvr2::judge(path, &found, &labels)?;
        if verdicts.n_unused > 0 {
            output.note(format!(
                "{}: {} predictions are of examples without a label here",
                path.display(),
                verdicts.n_unused
            ));
        }
        judged.add(path, nlvr2::sample(verdicts.examples), Vec::new());
    }
    if labels
        .examples
        .iter()
        .any(|(id, _)| nlvr2::sentence_of(id).is_none())
    {
        judged.units = "examples";
        output.note("no consistency: the identifiers do not tell which examples share a sentence");
    }
    Ok(judged)
}

fn score_captions(args: &CaptionsArgs, output: &Output) -> Result<Judged> {
    let references = predictions::captions::read_annotations(&args.annotations, args.partial)?;
    let mut judged = Judged::new("captions", "images");
    judged.setting("annotations", args.annotations.display().to_string());
    judged.setting("partial", args.partial);
    let mut first: Option<Vec<i64>> = None;
    for path in &args.results {
        let results = predictions::captions::read_results(path)?;
        let pairs = predictions::captions::pair(
            path,
            &results,
            &references,
            &args.annotations,
            args.partial,
        )?;
        let (ids, captioned): (Vec<i64>, Vec<_>) = pairs.into_iter().unzip();
        let of_file = || path.display().to_string();
        let fault = "the captions are of other images";
        if is_first(&mut first, ids, fault).with_context(of_file)? {
            let n = captioned.len();
            judged.headline = format!("{n} of {} images", references.images.len());
            judged.count("images", n);
        }
        let sample = captions::sample(&captions::judge(&captioned));
        let meteor = (args.meteor_jar.as_ref()).map(|jar| meteor::measure(jar, &captioned));
        judged.add(path, sample, meteor.transpose()?.into_iter().collect());
    }
    output.note(match &args.meteor_jar {
        Some(_) => "no SPICE: it needs a trained parser",
        None => "no METEOR and no SPICE: they are programs of their own; --meteor-jar runs that of METEOR",
    });
    Ok(judged)
}
