//! `vlmerge expand`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use merge::convert::{Expansion, Start};
use merge::io::{OpenOptions, open};
use merge::layouts::{Form, detect};
use merge::{Checkpoint, Expert};

use super::convert::{ResizeArg, open_source};
use crate::args::write::WriteArgs;
use crate::output::Output;
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge expand beit_base.pth seed.safetensors --to agnostic
  vlmerge expand seed.ckpt specific.safetensors --to all-specific
  vlmerge expand seed.ckpt specific.safetensors --to ffn-specific --from language=text.ckpt
  vlmerge expand beit_base.pth vision.safetensors --to all-specific --experts vision-only --dry-run";

/// Flags of `vlmerge expand`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A BEiT checkpoint, or a modality-agnostic one of vl-merging
    input: PathBuf,
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Whom the blocks' weights of the result serve
    #[arg(long, value_enum, value_name = "FORM")]
    to: FormArg,
    /// The dictionary of the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Which experts start as copies; the others are left to whoever loads the result
    #[arg(long, value_enum, value_name = "WHICH", default_value = "copy")]
    experts: StartArg,
    /// Start one expert from another agnostic checkpoint
    #[arg(long, value_name = "EXPERT=FILE", value_parser = parse_from)]
    from: Vec<(Expert, PathBuf)>,
    /// First block with a vision_language expert [default: as stored, 10 of 12, 21 of 24]
    #[arg(long, value_name = "BLOCK")]
    fusion_start: Option<usize>,
    /// Resize position tables for images of this side in pixels
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// How to resize them [default: bicubic]
    #[arg(long, value_enum, value_name = "HOW", requires = "image_size")]
    resize: Option<ResizeArg>,
    /// Text positions that the bias table gets, or has, room for [default: 196]
    #[arg(long, value_name = "N")]
    text_table_len: Option<usize>,
    /// Carry along what the published program does not drop: BEiT's heads
    #[arg(long)]
    as_published: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// Form of a vl-merging checkpoint.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormArg {
    /// One set of weights for all modalities: a seed
    Agnostic,
    /// Experts own attention, FFN and norms
    #[value(alias = "specific")]
    AllSpecific,
    /// Experts own attention and its norm
    AttnSpecific,
    /// Experts own the FFN and its norm
    FfnSpecific,
    /// Experts own the norms
    LnSpecific,
}

impl From<FormArg> for Form {
    fn from(arg: FormArg) -> Self {
        match arg {
            FormArg::Agnostic => Self::Agnostic,
            FormArg::AllSpecific => Self::AllSpecific,
            FormArg::AttnSpecific => Self::AttnSpecific,
            FormArg::FfnSpecific => Self::FfnSpecific,
            FormArg::LnSpecific => Self::LnSpecific,
        }
    }
}

/// Which experts start as copies.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StartArg {
    /// All of them
    Copy,
    /// Only vision
    VisionOnly,
}

/// An expert and the file it starts from, such as `language=seed.ckpt`.
fn parse_from(text: &str) -> Result<(Expert, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("write EXPERT=FILE")?;
    let experts = [Expert::Vision, Expert::Language, Expert::VisionLanguage];
    let expert = experts
        .into_iter()
        .find(|expert| expert.to_string() == name.replace('-', "_"))
        .ok_or("experts are vision, language, vision_language")?;
    Ok((expert, file.into()))
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let source = open_source(&args.input, args.root.clone(), output)?;
    let layout = detect(&source)?;
    let expansion = Expansion {
        form: args.to.into(),
        start: match args.experts {
            StartArg::Copy => Start::Copy,
            StartArg::VisionOnly => Start::VisionOnly,
        },
        fusion_start: args.fusion_start,
        seeds: seeds(&args.from)?,
        image_size: args.image_size,
        resize: args.resize.map(Into::into),
        text_table_len: args.text_table_len,
        as_published: args.as_published,
        dtype: args.write.dtype.into(),
    };
    let plan = expansion.plan(source, layout.as_ref())?;
    if layout.name().starts_with("beit/") {
        output.note("BEiT knows no text: embeddings, pooler and heads are left to the loader");
    }
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}

fn seeds(from: &[(Expert, PathBuf)]) -> merge::Result<BTreeMap<Expert, Arc<Checkpoint>>> {
    from.iter()
        .map(|(expert, path)| Ok((*expert, Arc::new(open(path, &OpenOptions::default())?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_its_expert() {
        let expected = (Expert::VisionLanguage, PathBuf::from("a=b.pt"));
        assert_eq!(parse_from("vision-language=a=b.pt"), Ok(expected));
        assert!(parse_from("seed.pt").is_err());
        assert!(parse_from("audio=seed.pt").is_err());
    }
}
