//! `vlmerge synth`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use merge::layouts::{CatalogSpec, Form, GivenSizes, Heads, Sizes};
use merge::synth::{Spread, Synthesis};

use crate::cli::WriteArgs;
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge synth --size base --layout all-specific specific.safetensors
  vlmerge synth --size base --layout agnostic seed.safetensors        the seed of the same experts
  vlmerge synth --family vlmo --size base-plus --heads irtr --image-size 384 vlmo.pt
  vlmerge synth --family beit --layout per-block-tables --original-spelling beit.pth
  vlmerge synth --size custom --blocks 4 --width 128 --attention-heads 2 --fusion-start 3 small.pt";

/// Flags of `vlmerge synth`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// The model family
    #[arg(long, value_enum, default_value = "vl-merging")]
    family: Family,
    /// A published size; single sizes below change it
    #[arg(long, value_enum, default_value = "base")]
    size: Size,
    /// Form of the family [default: agnostic; for beit shared-table; for vlmo there is one a size]
    #[arg(long, value_enum, value_name = "FORM")]
    layout: Option<LayoutArg>,
    /// Heads beside the pooler
    #[arg(long, value_enum, value_name = "TASK", default_value = "pretrain")]
    heads: HeadsArg,
    /// Seed of the draws: the same gives the same weights in every family and form
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Start as training from scratch does: biases at zero, norms at one, experts as copies
    #[arg(long)]
    fresh: bool,
    /// Standard deviation of linear weights and embeddings [default: 0.02]
    #[arg(long, value_name = "NUMBER")]
    deviation: Option<f32>,
    /// LayerScale of both branches of each block [default: 0.1]
    #[arg(long, value_name = "NUMBER")]
    layer_scale: Option<f32>,
    /// Write index buffers too, as published checkpoints have them
    #[arg(long)]
    with_buffers: bool,
    /// Write BEiT's keys without `transformer.`, as in its own release
    #[arg(long)]
    original_spelling: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Single sizes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sizes")]
struct SizeArgs {
    /// Number of blocks
    #[arg(long, value_name = "N", required_if_eq("size", "custom"))]
    blocks: Option<usize>,
    /// Hidden size
    #[arg(long, value_name = "N", required_if_eq("size", "custom"))]
    width: Option<usize>,
    /// Attention heads of each block
    #[arg(long, value_name = "N", required_if_eq("size", "custom"))]
    attention_heads: Option<usize>,
    /// Inner size of the feed-forward network [default: 4 times the width]
    #[arg(long, value_name = "N")]
    ffn_width: Option<usize>,
    /// First block with a vision_language expert
    #[arg(long, value_name = "BLOCK", required_if_eq("size", "custom"))]
    fusion_start: Option<usize>,
    /// Side of a patch in pixels [default: 16]
    #[arg(long, value_name = "PIXELS")]
    patch_size: Option<usize>,
    /// Side of the image in pixels [default: 224]
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Text positions [default: 40]
    #[arg(long, value_name = "N")]
    text_len: Option<usize>,
    /// Text positions that the bias table has room for [default: 196]
    #[arg(long, value_name = "N")]
    text_table_len: Option<usize>,
    /// Word pieces [default: 30522]
    #[arg(long, value_name = "N")]
    vocabulary: Option<usize>,
    /// Answers of the vqa head [default: 3129]
    #[arg(long, value_name = "N")]
    answers: Option<usize>,
}

/// A model family.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Family {
    /// vl-merging, in five forms
    VlMerging,
    /// VLMo's release
    Vlmo,
    /// BEiT, vision only
    Beit,
}

/// A published size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Size {
    /// 12 blocks of width 768
    Base,
    /// 24 blocks of width 544; in VLMo with absolute positions
    BasePlus,
    /// 24 blocks of width 1024
    Large,
    /// 12 blocks of width 192
    Tiny,
    /// As the flags under Sizes say
    Custom,
}

/// A form of a family.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    /// vl-merging: one set of weights for all modalities
    Agnostic,
    /// vl-merging: experts own attention, FFN and norms
    #[value(alias = "specific")]
    AllSpecific,
    /// vl-merging: experts own attention and its norm
    AttnSpecific,
    /// vl-merging: experts own the FFN and its norm
    FfnSpecific,
    /// vl-merging: experts own the norms
    LnSpecific,
    /// BEiT, self-supervised: one bias table for all blocks
    SharedTable,
    /// BEiT, fine-tuned: a bias table in each block
    PerBlockTables,
}

/// Heads beside the pooler.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HeadsArg {
    /// Matching, contrastive, masked language modeling
    Pretrain,
    /// Image-text retrieval
    Irtr,
    /// Visual question answering
    Vqa,
    /// Reasoning over two images
    Nlvr2,
    /// None
    None,
}

impl From<HeadsArg> for Heads {
    fn from(arg: HeadsArg) -> Self {
        match arg {
            HeadsArg::Pretrain => Self::Pretrain,
            HeadsArg::Irtr => Self::Irtr,
            HeadsArg::Vqa => Self::Vqa,
            HeadsArg::Nlvr2 => Self::Nlvr2,
            HeadsArg::None => Self::None,
        }
    }
}

impl Args {
    fn form(&self) -> Result<Form, UsageError> {
        let layout = match (self.family, self.layout) {
            (Family::Vlmo, None) if self.size == Size::BasePlus => return Ok(Form::VlmoAbsolute),
            (Family::Vlmo, None) => return Ok(Form::Vlmo),
            (Family::VlMerging, layout) => layout.unwrap_or(LayoutArg::Agnostic),
            (Family::Beit, layout) => layout.unwrap_or(LayoutArg::SharedTable),
            (Family::Vlmo, Some(layout)) => layout,
        };
        match (self.family, layout) {
            (Family::VlMerging, LayoutArg::Agnostic) => Ok(Form::Agnostic),
            (Family::VlMerging, LayoutArg::AllSpecific) => Ok(Form::AllSpecific),
            (Family::VlMerging, LayoutArg::AttnSpecific) => Ok(Form::AttnSpecific),
            (Family::VlMerging, LayoutArg::FfnSpecific) => Ok(Form::FfnSpecific),
            (Family::VlMerging, LayoutArg::LnSpecific) => Ok(Form::LnSpecific),
            (Family::Beit, LayoutArg::SharedTable) => Ok(Form::BeitSharedTable),
            (Family::Beit, LayoutArg::PerBlockTables) => Ok(Form::BeitPerBlockTables),
            _ => Err(UsageError(
                "this family has no such layout; see `vlmerge synth --help`".into(),
            )),
        }
    }

    fn sizes(&self) -> Sizes {
        let sizes = match self.size {
            Size::Base | Size::Custom => Sizes::base(),
            Size::BasePlus => Sizes::base_plus(),
            Size::Large => Sizes::large(),
            Size::Tiny => Sizes::tiny(),
        };
        let given = &self.sizes;
        sizes.with(&GivenSizes {
            n_blocks: given.blocks,
            width: given.width,
            n_heads: given.attention_heads,
            ffn_width: given.ffn_width,
            fusion_start: given.fusion_start,
            patch_size: given.patch_size,
            image_size: given.image_size,
            text_len: given.text_len,
            text_table_len: given.text_table_len,
            vocabulary: given.vocabulary,
            n_answers: given.answers,
        })
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let synthesis = Synthesis {
        spec: CatalogSpec {
            form: args.form()?,
            sizes: args.sizes(),
            heads: args.heads.into(),
            with_buffers: args.with_buffers,
            original_spelling: args.original_spelling,
        },
        seed: args.seed,
        spread: Spread::given(args.deviation, args.layer_scale),
        is_fresh: args.fresh,
        dtype: args.write.dtype.into(),
    };
    let plan = synthesis.plan()?;
    let n_elements: usize = plan.entries.iter().map(|e| e.info.n_elements()).sum();
    output.note(format!(
        "{} random tensors of {n_elements} elements",
        plan.entries.len()
    ));
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}
