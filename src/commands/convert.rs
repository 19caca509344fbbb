//! `vlmerge convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use merge::convert::{ClipTarget, Conversion, RunArguments, Spelling, Wrapper};
use merge::gguf::GgufImport;
use merge::io::Container;
use merge::layouts::{ModelRecord, RecordFamily, by_name, detect};
use merge::mixtures::MixtureSpelling;
use merge::recipe::ModelRef;
use merge::{Checkpoint, Layout, MergePlan, MergeRecipe, quantized};

use crate::args::convert::{ResizeArg, note_others, open_source};
use crate::args::experts::ExpertsArgs;
use crate::args::gguf::{GgufArgs, is_gguf};
use crate::args::number::{Colors, parse_colors, parse_positive};
use crate::args::write::{DTypeArg, WriteArgs};
use crate::output::{Output, UsageError};
use crate::plan_view;

const EXAMPLES: &str = "\
Examples:
  vlmerge convert model.ckpt model.safetensors                       another container, same bits
  vlmerge convert model.ckpt model.safetensors --dtype bf16          rounded once
  vlmerge convert model.safetensors folder/model.safetensors --max-shard-size 2GB
  vlmerge convert vlmo_base.pt out.safetensors --to vl-merging       VLMo keys as vl-merging's
  vlmerge convert mixtral/ fused.safetensors --to fused-experts      all experts in one tensor
  vlmerge convert laion/ hf/ --to hf                                 open_clip's keys as HF's
  vlmerge convert siglip.npz hf/ --to hf                             JAX's arrays as HF's tensors
  vlmerge convert eve.pth half.safetensors --experts 16 --grams coco.gram.safetensors
  vlmerge convert mixtral/ half/ --experts 4 --grams c4.gram.safetensors    with its config.json
  vlmerge convert zerovl.pth zerovl.safetensors --module remove      keys without the prefix
  vlmerge convert zerovl.pth noted.safetensors --image-mean 0.5 --image-deviation 0.5
  vlmerge convert model.ckpt coco.safetensors --image-size 384       tables for a larger image
  vlmerge convert step-1000/ model.safetensors                       pieces of FSDP ranks as one
  vlmerge convert megatron/ hf/ --to hf --run-arg vocab_size=32000   a folder for transformers
  vlmerge convert fp8/ bf16/ --dequantize                            codes and scales as numbers
  vlmerge convert model.gguf hf.safetensors --dtype f16              names of Hugging Face
  vlmerge convert model.gguf folder/                                 with config.json and tokenizer
  vlmerge convert qwen/ qwen.gguf --outtype q8_0                     as llama.cpp's converter
  vlmerge convert qwen/ qwen.gguf --max-shard-size 4GB               in parts, as gguf-split's
  vlmerge convert adapter/ adapter.gguf --base qwen/                 a LoRA in PEFT's form
  vlmerge convert model.ckpt nlvr2.safetensors --image-size 384 --nlvr2 --dry-run";

/// Flags of `vlmerge convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The checkpoint to read
    input: PathBuf,
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Give the keys of a model that has one FFN per modality, mixtures of experts, or two towers as CLIP, or that comes
    /// from TensorFlow, Flax or JAX, another spelling
    #[arg(long, value_enum, value_name = "SPELLING")]
    to: Option<SpellingArg>,
    /// An argument of a run of Megatron that its files lack, as Megatron names it, for --to hf; may be repeated
    #[arg(long, value_name = "NAME=VALUE", requires = "to")]
    run_arg: Vec<String>,
    /// Add or remove the prefix `module.` that data-parallel wrappers put before every key
    #[arg(long, value_enum, value_name = "WHAT")]
    module: Option<ModuleArg>,
    /// Resize position tables for images with a side of this many pixels
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Way to resize relative position tables [default: geometric for VLMo, else bicubic]
    #[arg(long, value_enum, value_name = "HOW", requires = "image_size")]
    resize: Option<ResizeArg>,
    /// Keep only the first text positions
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    text_len: Option<usize>,
    /// Text positions that the bias table has room for, if the file does not say [default: 196]
    #[arg(long, value_name = "N", requires = "image_size")]
    text_table_len: Option<usize>,
    /// Add a third token type for the second image of NLVR2, as a copy of the second
    #[arg(long)]
    nlvr2: bool,
    /// Write quantized weights as the numbers that they stand for, in bf16 or --dtype. If the output is
    /// a folder, configuration and tokenizer are copied too
    #[arg(long)]
    dequantize: bool,
    /// Note the attention heads of the image tower, which weights do not tell, for programs that read the output
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    image_heads: Option<usize>,
    /// Note the attention heads of the text tower
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    text_heads: Option<usize>,
    /// Note the divisor of similarities, for models that do not learn it
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Note the numbers subtracted from red, green and blue of a picture, scaled to [0, 1]: one number or three
    #[arg(long, value_name = "R,G,B", value_parser = parse_colors)]
    image_mean: Option<Colors>,
    /// Note the divisors of red, green and blue after that
    #[arg(long, value_name = "R,G,B", value_parser = parse_colors)]
    image_deviation: Option<Colors>,
    /// Rebuild index buffers for the new sizes, instead of leaving them out
    #[arg(long)]
    keep_derived: bool,
    #[command(flatten)]
    experts: ExpertsArgs,
    #[command(flatten)]
    gguf: GgufArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// A spelling of keys.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpellingArg {
    /// As vl-merging's ffn-specific form
    VlMerging,
    /// As the VLMo release
    Vlmo,
    /// Mixtures of experts as Mixtral: block_sparse_moe.experts.N.w1, w3 and w2
    Mixtral,
    /// Mixtures as Qwen-MoE and DeepSeek-MoE: mlp.experts.N.gate_proj, up_proj and down_proj
    SingleExperts,
    /// Mixtures as transformers 5: mlp.experts.gate_up_proj (experts, 2 units, width) and down_proj
    FusedExperts,
    /// The same with the last two axes exchanged
    FusedTransposed,
    /// Mixtures as Granite-MoE: block_sparse_moe.input_linear and output_linear
    Granite,
    /// CLIP, SigLIP and language models of Megatron as transformers, a folder with config.json too; BERT, CLIP and SigLIP from
    /// names of TensorFlow, Flax and JAX
    Hf,
    /// CLIP and SigLIP as open_clip; a folder gets open_clip_config.json too
    OpenClip,
}

/// The treatment of the prefix `module.`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModuleArg {
    /// Add it to every key that lacks it
    Add,
    /// Remove it from every key that has it
    Remove,
}

impl Args {
    /// A flag that says what a GGUF file does not have.
    fn not_of_gguf(&self) -> Option<&'static str> {
        let flags = [
            (self.to.is_some(), "--to"),
            (self.module.is_some(), "--module"),
            (self.image_size.is_some(), "--image-size"),
            (self.text_len.is_some(), "--text-len"),
            (self.nlvr2, "--nlvr2"),
            (self.keep_derived, "--keep-derived"),
            (!self.run_arg.is_empty(), "--run-arg"),
            (self.experts.is_given(), "--experts"),
            (self.image_heads.is_some(), "--image-heads"),
            (self.text_heads.is_some(), "--text-heads"),
            (self.temperature.is_some(), "--temperature"),
            (self.image_mean.is_some(), "--image-mean"),
            (self.image_deviation.is_some(), "--image-deviation"),
        ];
        let mut given = flags.into_iter().filter(|(is_given, _)| *is_given);
        given.next().map(|(_, flag)| flag)
    }

    /// The facts about two towers in the output's record.
    fn facts(&self) -> ModelRecord {
        let facts = ModelRecord {
            image_heads: self.image_heads,
            text_heads: self.text_heads,
            temperature: self.temperature,
            image_mean: self.image_mean.map(|Colors(colors)| colors),
            image_deviation: self.image_deviation.map(|Colors(colors)| colors),
            ..ModelRecord::default()
        };
        ModelRecord {
            family: (facts != ModelRecord::default()).then_some(RecordFamily::Zerovl),
            ..facts
        }
    }
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    if args
        .out
        .as_ref()
        .is_some_and(|out| is_gguf(out, &args.write))
    {
        if let Some(flag) = args.not_of_gguf() {
            return Err(UsageError(format!("{flag} is not for GGUF files")).into());
        }
        let (root, dequantize) = (args.root.clone(), args.dequantize);
        let plan = (args.gguf).plan(&args.input, root, dequantize, &args.write, output)?;
        return plan_view::carry_out(&plan, args.out, &args.write, false, output);
    }
    if let Some(flag) = args.gguf.given() {
        return Err(UsageError(format!("{flag} is for GGUF files, which end in .gguf")).into());
    }
    let mut source = open_source(&args.input, args.root.clone(), output)?;
    let is_folder = (args.out.as_ref()).is_some_and(|out| args.write.is_folder(out));
    let is_megatron = source.info().container == Container::Megatron;
    let run_arguments = RunArguments::parse(&args.run_arg)?;
    let is_renamed = is_megatron && matches!(args.to, Some(SpellingArg::Hf));
    if !run_arguments.is_empty() && !is_renamed {
        let fault = "--run-arg is for --to hf of a checkpoint of Megatron-LM";
        return Err(UsageError(fault.into()).into());
    }
    let conversion = Conversion {
        spelling: args.to.map(|to| match to {
            SpellingArg::VlMerging => Spelling::VlMerging,
            SpellingArg::Vlmo => Spelling::Vlmo,
            SpellingArg::Mixtral => Spelling::Mixture(MixtureSpelling::Mixtral),
            SpellingArg::SingleExperts => Spelling::Mixture(MixtureSpelling::SingleExperts),
            SpellingArg::FusedExperts => Spelling::Mixture(MixtureSpelling::FusedExperts),
            SpellingArg::FusedTransposed => Spelling::Mixture(MixtureSpelling::FusedTransposed),
            SpellingArg::Granite => Spelling::Mixture(MixtureSpelling::Granite),
            SpellingArg::Hf if is_megatron => Spelling::LanguageModel,
            SpellingArg::Hf => Spelling::Clip(ClipTarget::HuggingFace),
            SpellingArg::OpenClip => Spelling::Clip(ClipTarget::OpenClip),
        }),
        wrapper: args.module.map(|module| match module {
            ModuleArg::Add => Wrapper::Add,
            ModuleArg::Remove => Wrapper::Remove,
        }),
        image_size: args.image_size,
        resize: args.resize.map(Into::into),
        text_len: args.text_len,
        text_table_len: args.text_table_len,
        third_token_type: args.nlvr2,
        with_buffers: args.keep_derived,
        dtype: args.write.dtype.into(),
        facts: args.facts(),
        run_arguments,
        is_folder,
    };
    let is_of_gguf = is_folder
        && source.info().container == Container::Gguf
        && args.module.is_none()
        && !args.experts.is_given()
        && !conversion.needs_family();
    if !is_of_gguf {
        note_others(&args.input, &source, output);
    }
    if args.dequantize {
        source = quantized::dequantized(source)?;
    } else if args.write.dtype != DTypeArg::Keep {
        quantized::check_castable(&source)?;
    } else if args.experts.is_given() {
        quantized::check_experts(&source)?;
    }
    let dtype = args.write.dtype.into();
    if let Some(plan) = (args.experts).plan(&source, dtype, is_folder, output)? {
        return plan_view::carry_out(&plan, args.out, &args.write, false, output);
    }
    if is_of_gguf {
        let plan = GgufImport { dtype }.plan(source)?;
        return plan_view::carry_out(&plan, args.out, &args.write, false, output);
    }
    if let (true, Some(out)) = (args.dequantize && !conversion.needs_family(), &args.out)
        && args.write.is_folder(out)
    {
        // The files beside the weights go along, and config.json must no longer say that they are codes.
        let model = ModelRef {
            root: args.root.clone(),
            ..ModelRef::new(&args.input)
        };
        let recipe = MergeRecipe {
            merge_method: "passthrough".into(),
            models: vec![model],
            dtype: args.write.dtype.into(),
            ..MergeRecipe::default()
        };
        let (plan, _) = MergePlan::resolve(&recipe)?;
        return plan_view::carry_out(&plan, args.out, &args.write, false, output);
    }
    let layout = layout_of(&source, &conversion)?;
    let plan = conversion.plan(source, layout.as_ref())?;
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}

/// The family; the generic one for keys that contradict each other if they need only be copied.
fn layout_of(source: &Checkpoint, conversion: &Conversion) -> merge::Result<Box<dyn Layout>> {
    match detect(source) {
        Err(_) if !conversion.needs_family() => by_name("generic", source),
        result => result,
    }
}
