//! `vlmerge transplant`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;
use merge::beside::text_beside;
use merge::recipe::ModelRef;
use merge::transplant::{
    AllowMatch, Approximation, DEFAULT_GRAM_BYTES, DEFAULT_HELD_OUT, DEFAULT_K, SubwordMethod,
    Transplant, TransplantOptions, WeightScheme,
};

use crate::args::number::parse_positive;
use crate::args::write::{WriteArgs, parse_size};
use crate::output::{Output, UsageError};
use crate::plan_view;
use crate::prompts::PromptTokenizer;

const EXAMPLES: &str = "\
Examples:
  vlmerge transplant model/ donor/ out/
  vlmerge transplant model/ donor/ out/ --k 32 --pad-to-multiple-of 64
  vlmerge transplant model/ donor/ out/ --method common_interpolation --weight-scheme least_squares
  vlmerge transplant model/ donor/ out/ --method subword --subword-method weighted_mean
  vlmerge transplant org/model org/donor out/ --dry-run

out/ is MODEL with DONOR's tokenizer. Rows of tokens that both have are copied; the others are made:
  omp                   a sparse combination of shared rows in DONOR, the same one in MODEL
  common_interpolation  a combination of the nearest shared rows in DONOR, the same one in MODEL
  nearest               the row of the nearest shared token in DONOR
  subword               the rows of the pieces into which MODEL's tokenizer splits the token
  landmark_pca          a rotation from DONOR's rows to MODEL's that fits the shared ones
  mean, zero            the mean of MODEL's rows; zero
  randn, john_hewitt    normal draws; with the mean and the covariance of MODEL's rows
It measures the method on shared tokens that it treats as if they were not shared (--held-out).
docs/transplant.md says more, and where mergekit-tokensurgeon does otherwise.";

/// Flags of `vlmerge transplant`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that gets another tokenizer
    model: PathBuf,
    /// The model whose tokenizer it gets
    donor: PathBuf,
    /// The folder to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Way of making rows of tokens that MODEL lacks
    #[arg(
        long,
        short = 'a',
        visible_alias = "approximation-method",
        value_enum,
        default_value_t,
        value_name = "METHOD"
    )]
    method: MethodArg,
    /// Rows of a combination: omp, common_interpolation [default: 64]
    #[arg(long, short, value_name = "K", value_parser = parse_positive)]
    k: Option<usize>,
    /// Factors of the nearest rows: common_interpolation [default: distance_proportional]
    #[arg(long, short, value_enum, value_name = "SCHEME")]
    weight_scheme: Option<SchemeArg>,
    /// The nearest rows are those of the largest cosine, not of the smallest distance: common_interpolation, nearest
    #[arg(long, short)]
    cosine_similarity: bool,
    /// The row from those of the pieces: subword [default: mean]
    #[arg(long, short, value_enum, value_name = "HOW")]
    subword_method: Option<SubwordArg>,
    /// Most memory for products of shared rows, which make omp fast; with less it takes many times as long
    /// [default: 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    gram_memory: Option<u64>,
    /// Tables in which a token takes the row of the longest beginning of its text
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    prefix_match: MatchArg,
    /// Tables in which a byte such as <0x0A> and a token of this one byte are the same
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    byte_match: MatchArg,
    /// Leave tokens out that training hardly saw, by their rows
    #[arg(long)]
    magikarp: bool,
    /// Add normal noise of this deviation to rows that are made
    #[arg(long, value_name = "DEVIATION", allow_negative_numbers = true)]
    new_vocab_noise: Option<f64>,
    /// Multiply rows that are made
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    new_vocab_scale: Option<f64>,
    /// Fill tables up to a multiple of N rows, with the mean row
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 1)]
    pad_to_multiple_of: usize,
    /// Shared tokens that are made as if they were not shared, to measure how well it goes
    #[arg(long, value_name = "N", default_value_t = DEFAULT_HELD_OUT)]
    held_out: usize,
    /// Seed of draws: rows, noise, and the choice of tokens to hold out
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    write: WriteArgs,
}

/// Ways of making rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum MethodArg {
    #[default]
    Omp,
    #[value(alias = "common")]
    CommonInterpolation,
    Nearest,
    Subword,
    LandmarkPca,
    Mean,
    Zero,
    #[value(alias = "random")]
    Randn,
    JohnHewitt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum SchemeArg {
    DistanceProportional,
    Barycentric,
    LeastSquares,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum SubwordArg {
    Mean,
    Sum,
    WeightedMean,
    FirstLast,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum MatchArg {
    #[default]
    No,
    Yes,
    Embed,
    LmHead,
}

impl From<MatchArg> for AllowMatch {
    fn from(arg: MatchArg) -> Self {
        match arg {
            MatchArg::No => Self::No,
            MatchArg::Yes => Self::Yes,
            MatchArg::Embed => Self::Embed,
            MatchArg::LmHead => Self::LmHead,
        }
    }
}

/// A size, or 0.
fn parse_memory(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        text => parse_size(text),
    }
}

impl Args {
    /// The method, unless a flag has no effect on it.
    fn approximation(&self) -> Result<Approximation, UsageError> {
        use MethodArg::{
            CommonInterpolation, JohnHewitt, LandmarkPca, Mean, Nearest, Omp, Randn, Subword, Zero,
        };
        let flags: [(&str, bool, &[MethodArg]); 5] = [
            ("--k", self.k.is_some(), &[Omp, CommonInterpolation]),
            (
                "--weight-scheme",
                self.weight_scheme.is_some(),
                &[CommonInterpolation],
            ),
            (
                "--cosine-similarity",
                self.cosine_similarity,
                &[CommonInterpolation, Nearest],
            ),
            (
                "--subword-method",
                self.subword_method.is_some(),
                &[Subword],
            ),
            ("--gram-memory", self.gram_memory.is_some(), &[Omp]),
        ];
        let name = |method: MethodArg| {
            let value = method.to_possible_value();
            value
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default()
        };
        for (flag, is_given, methods) in flags {
            if is_given && !methods.contains(&self.method) {
                let others: Vec<String> = methods.iter().map(|method| name(*method)).collect();
                return Err(UsageError(format!(
                    "{flag} has no effect on --method {}; it is for {}",
                    name(self.method),
                    others.join(" and ")
                )));
            }
        }
        let k = self.k.unwrap_or(DEFAULT_K);
        let is_cosine = self.cosine_similarity;
        Ok(match self.method {
            Omp => Approximation::Omp {
                k,
                gram_bytes: self.gram_memory.unwrap_or(DEFAULT_GRAM_BYTES),
            },
            CommonInterpolation => Approximation::CommonInterpolation {
                k,
                scheme: match self.weight_scheme {
                    None | Some(SchemeArg::DistanceProportional) => {
                        WeightScheme::DistanceProportional
                    }
                    Some(SchemeArg::Barycentric) => WeightScheme::Barycentric,
                    Some(SchemeArg::LeastSquares) => WeightScheme::LeastSquares,
                },
                is_cosine,
            },
            Nearest => Approximation::Nearest { is_cosine },
            Subword => Approximation::Subword(match self.subword_method {
                None | Some(SubwordArg::Mean) => SubwordMethod::Mean,
                Some(SubwordArg::Sum) => SubwordMethod::Sum,
                Some(SubwordArg::WeightedMean) => SubwordMethod::WeightedMean,
                Some(SubwordArg::FirstLast) => SubwordMethod::FirstLast,
            }),
            LandmarkPca => Approximation::LandmarkPca,
            Mean => Approximation::Mean,
            Zero => Approximation::Zero,
            Randn => Approximation::Randn,
            JohnHewitt => Approximation::JohnHewitt,
        })
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let options = TransplantOptions {
        method: args.approximation()?,
        prefix_match: args.prefix_match.into(),
        byte_match: args.byte_match.into(),
        magikarp: args.magikarp,
        new_vocab_noise: args.new_vocab_noise,
        new_vocab_scale: args.new_vocab_scale,
        pad_to_multiple_of: args.pad_to_multiple_of,
        held_out: args.held_out,
        seed: args.seed,
    };
    let tokenizer = match args.method {
        MethodArg::Subword => Some(splitter(&args.model)?),
        _ => None,
    };
    let split = tokenizer.map(|(path, tokenizer)| {
        move |text: &str| -> Result<Vec<u32>, String> {
            let found = tokenizer.ids(&path, &[text.to_owned()]);
            let found = found.map_err(|error| error.to_string())?;
            Ok(found.into_iter().flatten().collect())
        }
    });
    let transplant = Transplant {
        model: &args.model,
        donor: &args.donor,
        options: &options,
        dtype: args.write.dtype.into(),
        split: split.as_ref().map(|split| split as _),
        is_folder: (args.out.as_ref()).is_none_or(|out| args.write.is_folder(out)),
    };
    let plan = transplant.plan()?;
    plan_view::carry_out(&plan, args.out, &args.write, true, output)
}

/// The tokenizer of the model, without the token that texts begin with.
fn splitter(model: &std::path::Path) -> Result<(PathBuf, PromptTokenizer)> {
    let model = ModelRef::new(model).model;
    let path = model.join("tokenizer.json");
    let Some(text) = text_beside(&model, "tokenizer.json")? else {
        bail!(
            "{}: is not there, and --method subword splits tokens by it",
            path.display()
        );
    };
    let tokenizer = PromptTokenizer::new(&path, &text, &[])?;
    Ok((path, tokenizer))
}
