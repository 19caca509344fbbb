//! `vlmerge expand`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use merge::convert::{
    BeitStart, EveStart, Expansion, FlmStart, FlmTowers, LoadReport, Start, Upcycling,
};
use merge::io::{OpenOptions, open};
use merge::layouts::{EveTask, FlmTask, Form, detect};
use merge::{Checkpoint, Expert, quantized};

use crate::args::convert::{ResizeArg, note_others, open_source};
use crate::args::number::parse_positive;
use crate::args::write::WriteArgs;
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge expand beit_base.pth seed.safetensors --to agnostic
  vlmerge expand seed.ckpt specific.safetensors --to all-specific
  vlmerge expand seed.ckpt specific.safetensors --to ffn-specific --from language=text.ckpt
  vlmerge expand beit_base.pth vision.safetensors --to all-specific --experts vision-only --dry-run
  vlmerge expand ViT-B-32.pt flm.safetensors --to flm-pretrain --text roberta-base --image-size 288
  vlmerge expand pretrain_4m.ckpt vqa.safetensors --to flm-vqa --image-size 576
  vlmerge expand pretrain_4m.ckpt captions.ckpt --to flm-caption
  vlmerge expand eve_base.pth retrieval.th --to eve-retrieval --image-size 384
  vlmerge expand beitv2_base.pth eve.safetensors --to eve-pretrain --seed 1
  vlmerge expand qwen/ mixture/ --to mixture --n-experts 8 --seed 1";

/// Flags of `vlmerge expand`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A BEiT checkpoint, a modality-agnostic one of vl-merging, an FLM, an EVE, or with --text an original CLIP
    input: PathBuf,
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Weights of a block that get a copy for each modality, or the task of an FLM or an EVE
    #[arg(long, value_enum, value_name = "FORM")]
    to: ToArg,
    /// RoBERTa for the text tower of a new FLM; the input gives the image tower
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Size of the FLM's vocabulary, to grow it [default: for captions two more]; of the EVE's that begins as a BEiT
    /// [default: 64000]
    #[arg(long, value_name = "N")]
    vocabulary: Option<usize>,
    /// Draw the heads of retrieval of an EVE even if the input has some, as the published program does
    #[arg(long)]
    fresh_heads: bool,
    /// Answers of a new VQA classifier [default: 3129; 3128 for eve]
    #[arg(long, value_name = "N")]
    answers: Option<usize>,
    /// Layers of RoBERTa that a new FLM keeps [default: 6]
    #[arg(long, value_name = "N", requires = "text")]
    text_blocks: Option<usize>,
    /// Cross-modal layers of a new FLM [default: 6]
    #[arg(long, value_name = "N", requires = "text")]
    cross_blocks: Option<usize>,
    /// Layers of the reconstructor that read the text tower [default: as many as it has]
    #[arg(long, value_name = "N", requires = "text")]
    reconstructor_bottom: Option<usize>,
    /// Layers of the reconstructor that read the cross-modal layers [default: as many as they are]
    #[arg(long, value_name = "N", requires = "text")]
    reconstructor_top: Option<usize>,
    /// Experts of each mixture, for --to mixture; of an EVE that begins as a BEiT [default: 32]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    n_experts: Option<usize>,
    /// Blocks that get a mixture, as 10..12 [default: for --to mixture all with one dense network; for an EVE that
    /// begins as a BEiT 10..12 or 21..24]
    #[arg(long, value_name = "A..B", value_parser = parse_blocks)]
    blocks: Option<Range<usize>>,
    /// Seed of the draws of weights that the inputs lack [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Experts to write, as copies; the result lacks the others [default: copy]
    #[arg(long, value_enum, value_name = "WHICH")]
    experts: Option<StartArg>,
    /// Start one expert from another agnostic checkpoint
    #[arg(long, value_name = "EXPERT=FILE", value_parser = parse_from)]
    from: Vec<(Expert, PathBuf)>,
    /// First block with a vision_language expert [default: the file's; else 10 of 12 or 21 of 24]
    #[arg(long, value_name = "BLOCK")]
    fusion_start: Option<usize>,
    /// Resize position tables for images with a side of this many pixels
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Way to resize position tables [default: bicubic]
    #[arg(long, value_enum, value_name = "HOW", requires = "image_size")]
    resize: Option<ResizeArg>,
    /// Text positions that the bias table has room for [default: 196]
    #[arg(long, value_name = "N")]
    text_table_len: Option<usize>,
    /// Keep BEiT's heads, as the published program does
    #[arg(long)]
    as_published: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// The target of an expansion.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ToArg {
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
    /// FLM: free language modeling
    FlmPretrain,
    /// FLM: free language modeling and image-text matching
    FlmItm,
    /// FLM: masked language modeling, with one stream
    FlmMlm,
    /// FLM: language modeling from left to right, with one stream
    FlmAr,
    /// FLM: visual question answering
    FlmVqa,
    /// FLM: reasoning over two images
    FlmNlvr2,
    /// FLM: retrieval by ranking pairs
    #[value(alias = "flm-irtr")]
    FlmRetrieval,
    /// FLM: writing captions
    FlmCaption,
    /// EVE: retrieval and matching
    EveRetrieval,
    /// EVE: visual question answering
    EveVqa,
    /// EVE: reasoning over two images that are read apart
    EveNlvr2,
    /// EVE: reasoning over two images that attend to each other
    EveNlvr2Biattn,
    /// EVE: pre-training by masked signals
    EvePretrain,
    /// EVE: the transformer alone
    EveBackbone,
    /// Mixtures of experts: copies of each dense network, and routers that are drawn
    Mixture,
}

/// A form of vl-merging, or the task of an FLM or an EVE.
enum To {
    Form(Form),
    Flm(FlmTask),
    Eve(EveTask),
    Mixture,
}

impl From<ToArg> for To {
    fn from(arg: ToArg) -> Self {
        match arg {
            ToArg::Agnostic => Self::Form(Form::Agnostic),
            ToArg::AllSpecific => Self::Form(Form::AllSpecific),
            ToArg::AttnSpecific => Self::Form(Form::AttnSpecific),
            ToArg::FfnSpecific => Self::Form(Form::FfnSpecific),
            ToArg::LnSpecific => Self::Form(Form::LnSpecific),
            ToArg::FlmPretrain => Self::Flm(FlmTask::Pretrain),
            ToArg::FlmItm => Self::Flm(FlmTask::Itm),
            ToArg::FlmMlm => Self::Flm(FlmTask::Mlm),
            ToArg::FlmAr => Self::Flm(FlmTask::Ar),
            ToArg::FlmVqa => Self::Flm(FlmTask::Vqa),
            ToArg::FlmNlvr2 => Self::Flm(FlmTask::Nlvr2),
            ToArg::FlmRetrieval => Self::Flm(FlmTask::Retrieval),
            ToArg::FlmCaption => Self::Flm(FlmTask::Caption),
            ToArg::EveRetrieval => Self::Eve(EveTask::Retrieval),
            ToArg::EveVqa => Self::Eve(EveTask::Vqa),
            ToArg::EveNlvr2 => Self::Eve(EveTask::Nlvr2),
            ToArg::EveNlvr2Biattn => Self::Eve(EveTask::Nlvr2Biattn),
            ToArg::EvePretrain => Self::Eve(EveTask::Pretrain),
            ToArg::EveBackbone => Self::Eve(EveTask::Backbone),
            ToArg::Mixture => Self::Mixture,
        }
    }
}

/// The experts that start as copies.
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

/// A range of blocks such as `10..12`, the second not included.
fn parse_blocks(text: &str) -> Result<Range<usize>, String> {
    let ends = text.split_once("..").and_then(|(first, end)| {
        let range = first.parse().ok()?..end.parse().ok()?;
        (!Range::<usize>::is_empty(&range)).then_some(range)
    });
    ends.ok_or_else(|| "give the first block and one past the last, as 10..12".to_owned())
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    match args.to.into() {
        To::Form(form) => to_form(form, args, output),
        To::Flm(task) => to_flm(task, args, output),
        To::Eve(task) => to_eve(task, args, output),
        To::Mixture => to_mixture(args, output),
    }
}

/// The error for a flag that is given and has no use.
fn refuse(given: &[(&'static str, bool)], what: &str) -> Result<(), UsageError> {
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((flag, _)) => Err(UsageError(format!("{what} has no use for {flag}"))),
    }
}

/// A model of vl-merging.
fn to_form(form: Form, args: Args, output: &Output) -> Result<ExitCode> {
    let of_flm = [
        ("--n-experts", args.n_experts.is_some()),
        ("--blocks", args.blocks.is_some()),
        ("--text", args.text.is_some()),
        ("--vocabulary", args.vocabulary.is_some()),
        ("--answers", args.answers.is_some()),
        ("--seed", args.seed.is_some()),
        ("--fresh-heads", args.fresh_heads),
    ];
    refuse(&of_flm, "a model of vl-merging")?;
    let source = open_source(&args.input, args.root.clone(), output)?;
    note_others(&args.input, &source, output);
    let layout = detect(&source)?;
    let expansion = Expansion {
        form,
        start: match args.experts {
            None | Some(StartArg::Copy) => Start::Copy,
            Some(StartArg::VisionOnly) => Start::VisionOnly,
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

/// An FLM.
fn to_flm(task: FlmTask, args: Args, output: &Output) -> Result<ExitCode> {
    let of_forms = [
        ("--n-experts", args.n_experts.is_some()),
        ("--blocks", args.blocks.is_some()),
        ("--experts", args.experts.is_some()),
        ("--from", !args.from.is_empty()),
        ("--fusion-start", args.fusion_start.is_some()),
        ("--resize", args.resize.is_some()),
        ("--text-table-len", args.text_table_len.is_some()),
        ("--as-published", args.as_published),
        ("--fresh-heads", args.fresh_heads),
    ];
    refuse(&of_forms, "an FLM")?;
    let source = open_source(&args.input, args.root.clone(), output)?;
    note_others(&args.input, &source, output);
    let seed = args.seed.unwrap_or(0);
    let dtype = args.write.dtype.into();
    let plan = match &args.text {
        Some(text) => {
            refuse(&[("--vocabulary", args.vocabulary.is_some())], "a new FLM")?;
            let text = Arc::new(open(text, &OpenOptions::default())?);
            output.notes_of(&text);
            let towers = FlmTowers {
                task,
                text,
                image_size: args.image_size,
                n_text_blocks: args.text_blocks,
                n_cross_blocks: args.cross_blocks,
                n_bottom: args.reconstructor_bottom,
                n_top: args.reconstructor_top,
                n_answers: args.answers,
                seed,
                dtype,
            };
            towers.plan(source)?
        }
        None => {
            let start = FlmStart {
                task,
                image_size: args.image_size,
                vocabulary: args.vocabulary,
                n_answers: args.answers,
                seed,
                dtype,
            };
            let (plan, report) = start.plan(source)?;
            say(&report, output);
            plan
        }
    };
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}

/// An EVE.
fn to_eve(task: EveTask, args: Args, output: &Output) -> Result<ExitCode> {
    let of_others = [
        ("--text", args.text.is_some()),
        ("--experts", args.experts.is_some()),
        ("--from", !args.from.is_empty()),
        ("--fusion-start", args.fusion_start.is_some()),
        ("--resize", args.resize.is_some()),
        ("--text-table-len", args.text_table_len.is_some()),
        ("--as-published", args.as_published),
    ];
    refuse(&of_others, "an EVE")?;
    let source = open_source(&args.input, args.root.clone(), output)?;
    note_others(&args.input, &source, output);
    let start = EveStart {
        image_size: args.image_size,
        n_answers: args.answers,
        with_fresh_heads: args.fresh_heads,
        of_beit: BeitStart {
            mixtures: args.blocks,
            n_experts: args.n_experts,
            vocabulary: args.vocabulary,
        },
        seed: args.seed.unwrap_or(0),
        dtype: args.write.dtype.into(),
        ..EveStart::of(task)
    };
    let (plan, report) = start.plan(source)?;
    say(&report, output);
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}

/// A model with mixtures of experts.
fn to_mixture(args: Args, output: &Output) -> Result<ExitCode> {
    let of_others = [
        ("--text", args.text.is_some()),
        ("--vocabulary", args.vocabulary.is_some()),
        ("--answers", args.answers.is_some()),
        ("--experts", args.experts.is_some()),
        ("--from", !args.from.is_empty()),
        ("--fusion-start", args.fusion_start.is_some()),
        ("--image-size", args.image_size.is_some()),
        ("--resize", args.resize.is_some()),
        ("--text-table-len", args.text_table_len.is_some()),
        ("--as-published", args.as_published),
        ("--fresh-heads", args.fresh_heads),
    ];
    refuse(&of_others, "a mixture of experts")?;
    let Some(n_experts) = args.n_experts else {
        return Err(UsageError("--to mixture needs --n-experts".into()).into());
    };
    let source = open_source(&args.input, args.root.clone(), output)?;
    note_others(&args.input, &source, output);
    quantized::check_experts(&source)?;
    let upcycling = Upcycling {
        n_experts,
        blocks: args.blocks,
        seed: args.seed.unwrap_or(0),
        is_folder: (args.out.as_ref()).is_some_and(|out| args.write.is_folder(out)),
        dtype: args.write.dtype.into(),
    };
    let plan = upcycling.plan(source)?;
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}

/// Names that are listed in a line.
const MAX_LISTED: usize = 4;

/// Says which tensors are drawn and which are left out.
fn say(report: &LoadReport, output: &Output) {
    for (names, what) in [
        (&report.missing, "not in the input, so drawn"),
        (&report.unexpected, "no part of the model, so left out"),
    ] {
        if names.is_empty() {
            continue;
        }
        let listed = names.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>();
        let more = match names.len() - listed.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        output.note(format!("{what}: {}{more}", listed.join(", ")));
    }
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
    fn blocks_are_a_range_with_something_in_it() {
        assert_eq!(parse_blocks("10..12"), Ok(10..12));
        for text in ["10", "12..12", "3..1", "..", "a..b"] {
            assert!(parse_blocks(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_source_names_its_expert() {
        let expected = (Expert::VisionLanguage, PathBuf::from("a=b.pt"));
        assert_eq!(parse_from("vision-language=a=b.pt"), Ok(expected));
        assert!(parse_from("seed.pt").is_err());
        assert!(parse_from("audio=seed.pt").is_err());
    }
}
