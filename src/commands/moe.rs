//! `vlmerge moe`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use merge::beside::text_beside;
use merge::moe::{GateMode, Mixing, MoeRecipe, PromptIds};
use merge::recipe::ModelRef;

use crate::args::write::{DTypeArg, WriteArgs};
use crate::output::{Output, UsageError};
use crate::plan_view;
use crate::prompts::PromptTokenizer;

const EXAMPLES: &str = "\
Examples:
  vlmerge moe moe.yaml --out mixture/
  vlmerge moe moe.yaml --out mixture/ --architecture deepseek --dtype bf16
  vlmerge moe moe.yaml --out mixture/ --seed 7 --shard-size 5GB
  vlmerge moe moe.yaml --out mixture/ --dry-run

Takes recipes of mergekit-moe as they are:
  base_model: org/base                 all but the experts, and the tokenizer
  gate_mode: cheap_embed               or random, uniform_random
  dtype: bfloat16
  experts_per_token: 2
  experts:
    - source_model: org/code
      positive_prompts: [\"Write a function that\", \"def main():\"]
      negative_prompts: [\"Once upon a time\"]
    - source_model: org/stories
      positive_prompts: [\"Once upon a time\"]
      residual_scale: 0.9

Llama and Mistral models become a Mixtral, or with a shared expert a DeepSeek-MoE or Qwen2-MoE;
Qwen2 models with one shared expert a Qwen2-MoE; Qwen3 models a Qwen3-MoE. The folder has the names
and the config.json that transformers, vLLM and llama.cpp read. `hidden` gates need a forward pass
of the base, which this program does not have for language models.";

/// Flags of `vlmerge moe`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe, as of mergekit-moe
    recipe: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "FOLDER", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Architecture of the output, by the beginning of its name: mixtral, deepseek, qwen, qwen3 [default: the recipe's,
    /// else the first that takes the models]
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// Seed of gates that are drawn, and of noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Make a mixture of copies of one model, which does what the model does until it is trained
    #[arg(
        long,
        visible_alias = "i-understand-this-is-not-useful-without-training"
    )]
    allow_same: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let mut recipe = MoeRecipe::open(&args.recipe)?;
    if args.architecture.is_some() {
        recipe.architecture = args.architecture;
    }
    if args.write.dtype != DTypeArg::Keep {
        recipe.dtype = args.write.dtype.into();
    }
    // As mergekit has it: random gates are there to be trained.
    if recipe.is_of_one_model() && recipe.gate_mode != GateMode::Random && !args.allow_same {
        let what = format!(
            "{}: all experts are of one model, so the mixture does what that model does; --allow-same makes it all the same",
            args.recipe.display()
        );
        return Err(UsageError(what).into());
    }
    let prompts = match recipe.gate_mode {
        GateMode::CheapEmbed => prompts(&recipe)?,
        _ => Vec::new(),
    };
    let mixing = Mixing {
        recipe: &recipe,
        prompts: &prompts,
        seed: args.seed,
        is_folder: args
            .out
            .as_ref()
            .is_none_or(|out| args.write.is_folder(out)),
    };
    if !mixing.is_folder {
        return Err(
            UsageError("--out of a mixture is a folder: it needs its config.json".into()).into(),
        );
    }
    let plan = mixing.plan()?;
    plan_view::carry_out(&plan, args.out, &args.write, true, output)
}

/// The tokens of all prompts, by the tokenizer of the base.
fn prompts(recipe: &MoeRecipe) -> Result<Vec<PromptIds>> {
    let base = ModelRef::new(&recipe.base_model.path).model;
    let path = base.join("tokenizer.json");
    let Some(tokenizer) = text_beside(&base, "tokenizer.json")? else {
        bail!(
            "{}: is not there, and gate_mode `cheap_embed` splits prompts by it; transformers writes it \
             with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`",
            path.display()
        );
    };
    let settings = ["tokenizer_config.json", "special_tokens_map.json"];
    let settings = settings.map(|name| text_beside(&base, name));
    let settings = settings.into_iter().collect::<Result<Vec<_>, _>>()?;
    let tokenizer = PromptTokenizer::new(&path, &tokenizer, &settings)?;
    let ids = |texts: &[String], path: &Path| tokenizer.ids(path, texts);
    let of_expert = |(_, expert): (String, &merge::moe::MoeExpert)| {
        Ok(PromptIds {
            positive: ids(&expert.positive_prompts, &path)?,
            negative: ids(&expert.negative_prompts, &path)?,
        })
    };
    recipe.gated().into_iter().map(of_expert).collect()
}
