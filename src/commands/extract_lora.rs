//! `vlmerge extract-lora`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use merge::DType;
use merge::io::OpenOptions;
use merge::lora::{ExtractOptions, ExtractTarget, Extraction, extract};
use merge::low_rank::Truncation;
use merge::plan::name_pattern;

use crate::args::number::parse_positive;
use crate::output::{Output, UsageError, bytes};
use crate::table::{Align, Table, significant};

const EXAMPLES: &str = "\
Examples:
  vlmerge extract-lora base/ finetuned/ --rank 16 --out adapter
  vlmerge extract-lora base.safetensors finetuned.safetensors --energy 0.9 --rank 128 --out adapter
  vlmerge extract-lora base/ finetuned/ --rank 8 --include '*.attn.*' --out adapter
  vlmerge extract-lora base/ finetuned/ --rank 16 --save-whole --dtype bf16 --out adapter
  vlmerge merge base/+adapter --out again.safetensors

It writes a folder that PEFT and vlmerge read. Each weight of a linear layer and each kernel of a
convolution gets two factors. Changed norms, biases, embeddings and single parameters are listed as
left out, unless --save-whole or --embeddings includes them.";

/// Flags of `vlmerge extract-lora`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model that was fine-tuned
    base: PathBuf,
    /// The fine-tuned model
    finetuned: PathBuf,
    /// Rank of the factors of each tensor; with --energy the largest rank
    #[arg(long, value_name = "R", value_parser = parse_positive, required_unless_present = "energy")]
    rank: Option<usize>,
    /// For each tensor take the smallest rank that keeps this share of the squared difference
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// Folder for the adapter
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use only tensors with these names: * and ? match, /.../ is a regular expression
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Skip tensors with these names
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Decompose embeddings too; their names tell them
    #[arg(long)]
    embeddings: bool,
    /// Store other changed tensors of modules whole (`modules_to_save`)
    #[arg(long)]
    save_whole: bool,
    /// The model stores linear weights as (in, out), as GPT-2 does
    #[arg(long)]
    fan_in_fan_out: bool,
    /// Element type of the factors
    #[arg(long, value_enum, default_value_t = FactorDType::F32, value_name = "TYPE")]
    dtype: FactorDType,
    /// Seed of the random sketches
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Replace an existing adapter
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FactorDType {
    F32,
    Bf16,
    F16,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    let options = args.options()?;
    let base = merge::quantized::open(&args.base, &OpenOptions::default())?;
    let finetuned = merge::quantized::open(&args.finetuned, &OpenOptions::default())?;
    for source in [&base, &finetuned] {
        source.require_unique_names()?;
        output.notes_of(source);
    }
    let target = ExtractTarget {
        folder: args.out.clone(),
        force: args.force,
        command: args.command(),
        base: args.base.clone(),
    };
    let found = extract(&base, &finetuned, &options, &target, output)?;
    if let Some(note) = &found.note {
        output.note(note);
    }
    if output.json {
        output.json(&found)?;
    } else {
        show(&found, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self) -> Result<ExtractOptions> {
        let truncation = match (self.energy, self.rank) {
            (Some(share), _) if !(share > 0.0 && share <= 1.0) => {
                return Err(UsageError("--energy must be above 0 and at most 1".into()).into());
            }
            (Some(share), max_rank) => Truncation::Energy { share, max_rank },
            // Either of them is there.
            (None, rank) => Truncation::Rank(rank.unwrap_or(1)),
        };
        let compile = |patterns: &[String]| {
            let compiled = patterns.iter().map(|pattern| {
                name_pattern(pattern)
                    .map_err(|error| UsageError(format!("`{pattern}` is no pattern: {error}")))
            });
            compiled.collect::<Result<_, UsageError>>()
        };
        Ok(ExtractOptions {
            truncation,
            dtype: match self.dtype {
                FactorDType::F32 => DType::F32,
                FactorDType::Bf16 => DType::BF16,
                FactorDType::F16 => DType::F16,
            },
            include: compile(&self.include)?,
            exclude: compile(&self.exclude)?,
            embeddings: self.embeddings,
            save_whole: self.save_whole,
            fan_in_fan_out: self.fan_in_fan_out,
            seed: self.seed,
        })
    }

    /// The command line, as it goes into the file.
    fn command(&self) -> String {
        let mut text = "vlmerge extract-lora".to_owned();
        let flags = [
            ("rank", self.rank.map(|rank| rank.to_string())),
            ("energy", self.energy.map(|share| share.to_string())),
            ("seed", Some(self.seed.to_string())),
        ];
        for (name, value) in flags {
            if let Some(value) = value {
                text += &format!(" --{name} {value}");
            }
        }
        for (name, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for pattern in patterns {
                text += &format!(" --{name} '{pattern}'");
            }
        }
        let switches = [
            ("embeddings", self.embeddings),
            ("save-whole", self.save_whole),
            ("fan-in-fan-out", self.fan_in_fan_out),
        ];
        for (name, _) in switches.iter().filter(|(_, is_on)| *is_on) {
            text += &format!(" --{name}");
        }
        text
    }
}

fn show(found: &Extraction, output: &Output) -> Result<()> {
    let right = |name: &str| (name.to_owned(), Align::Right);
    let mut table = Table::new(vec![
        ("tensor".to_owned(), Align::Left),
        right("shape"),
        right("change"),
        right("rank"),
        right("error"),
        right("energy"),
    ]);
    for tensor in &found.tensors {
        table.row(vec![
            tensor.name.clone(),
            format!("{:?}", tensor.shape),
            significant(tensor.relative_change),
            tensor.rank.to_string(),
            significant(tensor.relative_error),
            format!("{:.6}", tensor.energy),
        ]);
    }
    output.text(&table.to_string())?;
    for name in &found.whole {
        output.line(format!("whole     {name}"))?;
    }
    for tensor in &found.left_out {
        output.line(format!(
            "left out  {}  {:?}  ({}; change {})",
            tensor.name,
            tensor.shape,
            tensor.why,
            significant(tensor.relative_change)
        ))?;
    }
    output.line(format!(
        "{} tensors with factors, {} whole, {} changed and left out, {} unchanged, {} not looked at; error {} of \
         all differences; {}",
        found.tensors.len(),
        found.whole.len(),
        found.left_out.len(),
        found.n_unchanged,
        found.n_excluded,
        significant(found.relative_error),
        bytes(found.output_bytes),
    ))?;
    output.note(
        "change: |tuned - base| / |base|; error: |tuned - base - B A| / |tuned - base|; energy: 1 - error^2 \
         (Frobenius norms, of the factors as stored)",
    );
    Ok(())
}
