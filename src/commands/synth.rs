//! `vlmerge synth`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use merge::MergePlan;
use merge::layouts::{CatalogSpec, ClipSpec, Form, GivenSizes, Heads, Sizes};
use merge::layouts::{EveSizes, EveSpec, EveTask};
use merge::layouts::{FlmSpec, GivenFlmSizes, GivenTower, GivenTwoTowers, ZerovlSizes, ZerovlSpec};
use merge::synth::{Fresh, Spread, Synthesis};

use crate::args::flm::TaskArg;
use crate::args::write::WriteArgs;
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge synth --size base --layout all-specific specific.safetensors
  vlmerge synth --size base --layout agnostic seed.safetensors        the seed of the same experts
  vlmerge synth --family vlmo --size base-plus --heads retrieval --image-size 384 vlmo.pt
  vlmerge synth --family beit --layout per-block-tables --original-spelling beit.pth
  vlmerge synth --family zerovl --temperature learned zerovl.safetensors
  vlmerge synth --family zerovl --blocks 2 --width 64 --vocabulary 101 --image-size 32 \\
                --patch-size 8 --joint-width 32 tiny.safetensors
  vlmerge synth --family flm --task caption captions.ckpt
  vlmerge synth --family clip --size large vit-l-14.safetensors
  vlmerge synth --family eve --size large --heads retrieval retrieval.th
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
    /// A published size; the flags under Sizes change parts of it
    #[arg(long, value_enum, default_value = "base")]
    size: Size,
    /// Form of the family [default: agnostic; shared-table for beit; the others have one form]
    #[arg(long, value_enum, value_name = "FORM")]
    layout: Option<LayoutArg>,
    /// Heads to add to the pooler [default: pretrain; none for eve; zerovl has none, flm those of its --task]
    #[arg(long, value_enum, value_name = "TASK")]
    heads: Option<HeadsArg>,
    /// Temperature of zerovl [default: constant]
    #[arg(long, value_enum, value_name = "HOW")]
    temperature: Option<TemperatureArg>,
    /// Task of an flm [default: pretrain]
    #[arg(long, value_enum, value_name = "TASK")]
    task: Option<TaskArg>,
    /// Seed of the draws; one seed gives the same weights in every family and form
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draw as training from scratch does: biases 0, norms 1, experts equal
    #[arg(long)]
    fresh: bool,
    /// Standard deviation of linear weights and embeddings [default: 0.02]
    #[arg(long, value_name = "NUMBER")]
    deviation: Option<f32>,
    /// LayerScale of both branches of each block [default: 0.1]
    #[arg(long, value_name = "NUMBER")]
    layer_scale: Option<f32>,
    /// Write index buffers too, as published checkpoints do
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
    /// Number of blocks of the text tower [default: the image tower's for zerovl, 6 for flm]
    #[arg(long, value_name = "N")]
    text_blocks: Option<usize>,
    /// Width of the text tower, of an flm also of its cross-modal layers and its reconstructor
    /// [default: the image tower's for zerovl, 768 for flm]
    #[arg(long, value_name = "N")]
    text_width: Option<usize>,
    /// Heads of each block of the text tower [default: the image tower's for zerovl; 64 channels a head for flm]
    #[arg(long, value_name = "N")]
    text_attention_heads: Option<usize>,
    /// Inner size of the FFN of the text tower [default: 4 times its width]
    #[arg(long, value_name = "N")]
    text_ffn_width: Option<usize>,
    /// Width of the joint space of zerovl and clip [default: 512; 768 for a large clip]
    #[arg(long, value_name = "N")]
    joint_width: Option<usize>,
    /// Number of cross-modal layers of flm [default: 6]
    #[arg(long, value_name = "N")]
    cross_blocks: Option<usize>,
    /// Layers of flm's reconstructor beside those of the text tower [default: as many]
    #[arg(long, value_name = "N")]
    reconstructor_bottom: Option<usize>,
    /// Layers of flm's reconstructor beside the cross-modal ones [default: as many]
    #[arg(long, value_name = "N")]
    reconstructor_top: Option<usize>,
    /// Blocks of eve, counted from the last, that have a mixture of experts [default: 2; 3 for large]
    #[arg(long, value_name = "N")]
    mixtures: Option<usize>,
    /// Experts of each mixture of eve [default: 32]
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Tokens of a text that eve reads together with an image [default: 40]
    #[arg(long, value_name = "N")]
    pair_len: Option<usize>,
}

impl SizeArgs {
    /// The given sizes of the image tower, or of the blocks of a model that has one stack.
    fn image_tower(&self) -> GivenTower {
        GivenTower {
            n_blocks: self.blocks,
            width: self.width,
            n_heads: self.attention_heads,
            ffn_width: self.ffn_width,
        }
    }

    /// The given sizes of the text tower.
    fn text_tower(&self) -> GivenTower {
        GivenTower {
            n_blocks: self.text_blocks,
            width: self.text_width,
            n_heads: self.text_attention_heads,
            ffn_width: self.text_ffn_width,
        }
    }
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
    /// ZeroVL: a ViT and a BERT
    Zerovl,
    /// FLM: CLIP's ViT, RoBERTa, cross-modal layers and a reconstructor
    Flm,
    /// EVE: one transformer with mixtures of experts in its last blocks
    Eve,
    /// CLIP: ViT-B/32, or ViT-L/14 as size large
    Clip,
    /// SigLIP: ViT-B/16, or ViT-L/16 as size large
    Siglip,
}

/// Whether the temperature is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TemperatureArg {
    /// The checkpoint does not hold it
    Constant,
    /// A parameter of the model
    Learned,
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
    /// The flags under Sizes give all of it
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
    #[value(alias = "irtr")]
    Retrieval,
    /// Visual question answering
    Vqa,
    /// Reasoning over two images
    Nlvr2,
    /// Reasoning over two images that attend to each other, of eve
    Nlvr2Biattn,
    /// None
    None,
}

impl TryFrom<HeadsArg> for Heads {
    type Error = UsageError;

    fn try_from(arg: HeadsArg) -> Result<Self, UsageError> {
        Ok(match arg {
            HeadsArg::Pretrain => Self::Pretrain,
            HeadsArg::Retrieval => Self::Retrieval,
            HeadsArg::Vqa => Self::Vqa,
            HeadsArg::Nlvr2 => Self::Nlvr2,
            HeadsArg::Nlvr2Biattn => {
                return Err(UsageError("this family has no heads nlvr2-biattn".into()));
            }
            HeadsArg::None => Self::None,
        })
    }
}

impl From<HeadsArg> for EveTask {
    fn from(arg: HeadsArg) -> Self {
        match arg {
            HeadsArg::Pretrain => Self::Pretrain,
            HeadsArg::Retrieval => Self::Retrieval,
            HeadsArg::Vqa => Self::Vqa,
            HeadsArg::Nlvr2 => Self::Nlvr2,
            HeadsArg::Nlvr2Biattn => Self::Nlvr2Biattn,
            HeadsArg::None => Self::Backbone,
        }
    }
}

impl Args {
    fn form(&self) -> Result<Form, UsageError> {
        let layout = match (self.family, self.layout) {
            (Family::Vlmo, None) if self.size == Size::BasePlus => return Ok(Form::VlmoAbsolute),
            (Family::Vlmo, None) => return Ok(Form::Vlmo),
            (Family::Zerovl | Family::Flm | Family::Eve | Family::Clip | Family::Siglip, _) => {
                return Err(no_such_layout());
            }
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
            _ => Err(no_such_layout()),
        }
    }

    /// The first flag given that the family has no use for.
    fn unused_flag(&self) -> Option<&'static str> {
        let of = &self.sizes;
        let of_one_stack = [
            ("--heads", self.heads.is_some()),
            ("--layer-scale", self.layer_scale.is_some()),
        ];
        let multiway = [
            ("--layout", self.layout.is_some()),
            ("--original-spelling", self.original_spelling),
            ("--fusion-start", of.fusion_start.is_some()),
            ("--text-table-len", of.text_table_len.is_some()),
        ];
        let of_answers = [("--answers", of.answers.is_some())];
        let of_zerovl = [
            ("--temperature", self.temperature.is_some()),
            ("--joint-width", of.joint_width.is_some()),
        ];
        let of_clip = [("--with-buffers", self.with_buffers), of_zerovl[0]];
        let of_flm = [
            ("--task", self.task.is_some()),
            ("--cross-blocks", of.cross_blocks.is_some()),
            ("--reconstructor-bottom", of.reconstructor_bottom.is_some()),
            ("--reconstructor-top", of.reconstructor_top.is_some()),
        ];
        let of_eve = [
            ("--mixtures", of.mixtures.is_some()),
            ("--experts", of.experts.is_some()),
            ("--pair-len", of.pair_len.is_some()),
        ];
        let towers = [
            ("--text-blocks", of.text_blocks.is_some()),
            ("--text-width", of.text_width.is_some()),
            ("--text-attention-heads", of.text_attention_heads.is_some()),
            ("--text-ffn-width", of.text_ffn_width.is_some()),
        ];
        let others = match self.family {
            Family::Zerovl => {
                [&of_one_stack[..], &multiway, &of_answers, &of_flm, &of_eve].concat()
            }
            Family::Clip | Family::Siglip => [
                &of_one_stack[..],
                &multiway,
                &of_answers,
                &of_flm,
                &of_eve,
                &of_clip,
            ]
            .concat(),
            Family::Flm => [&of_one_stack[..], &multiway, &of_zerovl, &of_eve].concat(),
            Family::Eve => [&multiway[..], &of_zerovl, &of_flm, &towers].concat(),
            _ => [&of_zerovl[..], &of_flm, &towers, &of_eve].concat(),
        };
        let given = others.iter().find(|(_, is_given)| *is_given);
        given.map(|(flag, _)| *flag)
    }

    /// A ZeroVL of the base size, with the sizes that are given. Heads stay 64 wide, as far as they divide
    /// a given width.
    fn zerovl(&self) -> Result<ZerovlSpec, UsageError> {
        if self.size != Size::Base {
            return Err(UsageError(
                "zerovl has the published size base; single sizes change it".into(),
            ));
        }
        Ok(ZerovlSpec {
            sizes: ZerovlSizes::BASE.with(&self.two_towers()),
            has_temperature: self.temperature == Some(TemperatureArg::Learned),
            with_buffers: self.with_buffers,
        })
    }

    /// A CLIP or a SigLIP of a published size, with the sizes that are given.
    fn clip(&self, is_siglip: bool) -> Result<ClipSpec, UsageError> {
        let is_large = match self.size {
            Size::Base => false,
            Size::Large => true,
            _ => {
                return Err(UsageError(
                    "clip and siglip have the published sizes base and large; single sizes change them".into(),
                ));
            }
        };
        Ok(ClipSpec::published(is_siglip, is_large, &self.two_towers()))
    }

    /// The sizes of two towers that are given.
    fn two_towers(&self) -> GivenTwoTowers {
        let of = &self.sizes;
        GivenTwoTowers {
            image: of.image_tower(),
            text: of.text_tower(),
            patch_size: of.patch_size,
            image_size: of.image_size,
            vocabulary: of.vocabulary,
            text_len: of.text_len,
            joint_width: of.joint_width,
        }
    }

    /// An FLM of the published size of its task, with the sizes that are given. The text's width is that of the
    /// cross-modal layers, too.
    fn flm(&self) -> Result<FlmSpec, UsageError> {
        if self.size != Size::Base {
            return Err(UsageError(
                "flm has the published size base; single sizes change it".into(),
            ));
        }
        let of = &self.sizes;
        let spec = FlmSpec::published(self.task.unwrap_or(TaskArg::Pretrain).into());
        let given = GivenFlmSizes {
            image: of.image_tower(),
            text: of.text_tower(),
            n_cross: of.cross_blocks,
            n_bottom: of.reconstructor_bottom,
            n_top: of.reconstructor_top,
            patch_size: of.patch_size,
            image_size: of.image_size,
            vocabulary: of.vocabulary,
            text_len: of.text_len,
            n_answers: of.answers,
        };
        Ok(FlmSpec {
            sizes: spec.sizes.with(&given),
            ..spec
        })
    }

    /// An EVE of a published size, with the sizes that are given.
    fn eve(&self) -> Result<EveSpec, UsageError> {
        let published = match self.size {
            Size::Base => EveSizes::BASE,
            Size::Large => EveSizes::LARGE,
            _ => {
                return Err(UsageError(
                    "eve has the published sizes base and large; single sizes change them".into(),
                ));
            }
        };
        let of = &self.sizes;
        let task = self.heads.unwrap_or(HeadsArg::None).into();
        let mut sizes = EveSizes {
            image_size: EveSizes::published_side(task),
            blocks: published.blocks.with(&of.image_tower()),
            ..published
        };
        for (size, given) in [
            (&mut sizes.n_mixtures, of.mixtures),
            (&mut sizes.n_experts, of.experts),
            (&mut sizes.patch_size, of.patch_size),
            (&mut sizes.image_size, of.image_size),
            (&mut sizes.text_positions, of.text_len),
            (&mut sizes.pair_len, of.pair_len),
            (&mut sizes.vocabulary, of.vocabulary),
            (&mut sizes.n_answers, of.answers),
        ] {
            *size = given.unwrap_or(*size);
        }
        Ok(EveSpec {
            task,
            sizes,
            with_buffers: self.with_buffers,
        })
    }

    fn plan<S: Fresh>(&self, spec: S) -> merge::Result<MergePlan> {
        let synthesis = Synthesis {
            spec,
            seed: self.seed,
            spread: Spread::given(self.deviation, self.layer_scale),
            is_fresh: self.fresh,
            dtype: self.write.dtype.into(),
        };
        synthesis.plan()
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

fn no_such_layout() -> UsageError {
    UsageError("this family has no such layout; see `vlmerge synth --help`".into())
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    if let Some(flag) = args.unused_flag() {
        return Err(UsageError(format!("this family has no use for {flag}")).into());
    }
    let plan = match args.family {
        Family::Zerovl => args.plan(args.zerovl()?)?,
        Family::Flm => args.plan(args.flm()?)?,
        Family::Eve => args.plan(args.eve()?)?,
        Family::Clip => args.plan(args.clip(false)?)?,
        Family::Siglip => args.plan(args.clip(true)?)?,
        _ => args.plan(CatalogSpec {
            form: args.form()?,
            sizes: args.sizes(),
            heads: args.heads.unwrap_or(HeadsArg::Pretrain).try_into()?,
            with_buffers: args.with_buffers,
            original_spelling: args.original_spelling,
        })?,
    };
    let n_elements: usize = (plan.entries().iter())
        .map(|entry| entry.info.n_elements())
        .sum();
    output.note(format!(
        "{} random tensors of {n_elements} elements",
        plan.entries().len()
    ));
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}
