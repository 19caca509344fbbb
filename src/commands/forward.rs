//! `vlmerge forward`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Tensor};
use evaluate::Weights;
use evaluate::forward::{self, Given, NamedPasses};
use evaluate::models::{self, Dvae, Opened};
use merge::MergeRecipe;
use merge::io::{OpenOptions, WriteOptions};
use merge::provenance::Hashes;
use serde_json::json;
use train::losses::{self, Computed, LossOptions};
use train::objectives::MixDraw;

use crate::args::model::LoadArgs;
use crate::output::{Output, UsageError};
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge forward model.safetensors --list
  vlmerge forward model.safetensors --inputs inputs.safetensors --out outputs.safetensors --hidden
  vlmerge forward model.safetensors --inputs inputs.safetensors --out out.safetensors --pass vl,vqa
  vlmerge forward zerovl.safetensors --inputs inputs.safetensors --loss mixup --mix image:0.3
  vlmerge forward half.yaml --inputs inputs.safetensors --loss vqa --gradients gradients.safetensors

A recipe (.yaml) is merged in memory. --list prints the passes of the model, its losses, and the
tensors that they read. The file of inputs may hold only such tensors.";

/// Flags of `vlmerge forward`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Checkpoint, or a merge recipe (.yaml, .yml), which is merged in memory
    checkpoint: PathBuf,
    /// File of the tensors to run the model on
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    inputs: Option<PathBuf>,
    /// Of a file of several batches, the one whose tensors' names begin with NAME and a dot
    #[arg(long, value_name = "NAME", requires = "inputs")]
    batch: Option<String>,
    /// File to write the outputs to, each under its name
    #[arg(long, value_name = "FILE", required_unless_present_any = ["list", "loss"])]
    out: Option<PathBuf>,
    /// Passes to run [default: all whose inputs are given, of those that share outputs the model's own]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "out")]
    pass: Vec<String>,
    /// Write the hidden state after each block and its attention probabilities too
    #[arg(long, requires = "out")]
    hidden: bool,
    /// Compute a loss on the inputs and print it
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// File to write the gradient of the loss to, for each variable that it reaches
    #[arg(long, value_name = "FILE", requires = "loss")]
    gradients: Option<PathBuf>,
    /// Mix of pairs: image or text, and the share that a row keeps of itself, such as image:0.3
    #[arg(long, value_name = "SIDE:SHARE", requires = "loss", value_parser = parse_mix)]
    mix: Option<MixDraw>,
    /// Settings of comparing images and texts, as in `objectives[].contrast` of a recipe, such as '{block: 4,
    /// smoothing: 0.1}'
    #[arg(long, value_name = "SETTINGS", requires = "loss")]
    contrast: Option<String>,
    /// Settings of guessing words, as in `objectives[].language` of a recipe, such as '{forward_weight: 0.5}'
    #[arg(long, value_name = "SETTINGS", requires = "loss")]
    language: Option<String>,
    /// Checkpoint of the discrete autoencoder whose tokens are guessed, for mim and image_mim
    #[arg(long, value_name = "FILE", requires = "loss")]
    image_tokenizer: Option<PathBuf>,
    /// Print the passes of the model, its losses and the tensors that they read
    #[arg(long, conflicts_with_all = ["inputs", "out", "loss"])]
    list: bool,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: LoadArgs,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    for target in [&args.out, &args.gradients].into_iter().flatten() {
        merge::io::check_file_target(target, args.force)?;
    }
    let Opened {
        blueprint,
        model,
        weights,
    } = load(&args, output)?;
    let named = model.named_passes()?;
    if args.list {
        return list(named, blueprint.family(), output);
    }
    let Some(inputs) = &args.inputs else {
        return Err(UsageError("name a file of tensors with --inputs".into()).into());
    };
    let file = merge::io::open(inputs, &OpenOptions::default())?;
    let (batch, taken) = (args.batch.as_deref(), named.inputs());
    let given = Given::open_batch(&file, batch, taken, weights.device(), weights.dtype())?;
    let spec = match &args.loss {
        Some(name) => Some(losses::by_name(blueprint.family(), name)?),
        None => None,
    };
    if let Some(loss) = spec {
        given.check(loss.name, loss.inputs)?;
    }
    let mut said = serde_json::Map::new();
    let ran = match &args.out {
        Some(out) => {
            let outcome = forward::run(model.as_ref(), &given, &args.pass, args.hidden)?;
            for note in &outcome.notes {
                output.note(note);
            }
            if outcome.passes.is_empty() {
                let what = "no pass has all its inputs; `--list` prints what each reads";
                return Err(UsageError(what.into()).into());
            }
            write(&outcome.tensors, out, args.force)?;
            said.insert("passes".into(), json!(outcome.passes));
            said.insert("notes".into(), json!(outcome.notes));
            said.insert("outputs".into(), shapes(&outcome.tensors));
            Some((outcome, out))
        }
        None => None,
    };
    let loss = match spec {
        Some(loss) => {
            let options = args.loss_options(&weights)?;
            let computed = loss.compute(model.as_ref(), &weights, &given, &options)?;
            if let Some(path) = &args.gradients {
                write(&by_key(&computed, &weights), path, args.force)?;
            }
            let measures: serde_json::Map<_, _> = (computed.measures.iter())
                .map(|&(name, value)| (name.to_owned(), json!(value)))
                .collect();
            said.insert(
                "loss".into(),
                json!({ "name": loss.name, "value": computed.loss, "measures": measures }),
            );
            Some((loss.name, computed))
        }
        None => None,
    };
    if output.json {
        output.json(&said)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((outcome, out)) = ran {
        let (n, passes) = (outcome.tensors.len(), outcome.passes.join(", "));
        output.line(format!("{n} tensors of {passes} -> {}", out.display()))?;
    }
    if let Some((name, computed)) = loss {
        output.line(format!("{name}: {}", computed.loss))?;
        for (measure, value) in &computed.measures {
            output.line(format!("{measure}: {value}"))?;
        }
        if let Some(path) = &args.gradients {
            let n = computed.gradients.len();
            output.line(format!("{n} gradients -> {}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The settings that the loss depends on beside the tensors.
    fn loss_options(&self, weights: &Weights) -> Result<LossOptions> {
        let read = |text: &String| {
            let read = serde_saphyr::from_str(text);
            read.map_err(|error| UsageError(format!("--contrast {text}: {error}")))
        };
        let language = |text: &String| {
            let read = serde_saphyr::from_str(text);
            read.map_err(|error| UsageError(format!("--language {text}: {error}")))
        };
        let open = |path: &PathBuf| {
            let file = merge::io::open(path, &OpenOptions::default())?;
            let names = Dvae::weights(Arc::new(file), weights.device(), DType::F32)?;
            Ok::<_, anyhow::Error>(Arc::new(Dvae::load(&names)?))
        };
        Ok(LossOptions {
            mix: self.mix,
            contrast: self.contrast.as_ref().map(read).transpose()?,
            language: self.language.as_ref().map(language).transpose()?,
            image_tokenizer: self.image_tokenizer.as_ref().map(open).transpose()?,
        })
    }
}

/// `image:0.3`, `text:0.6`.
fn parse_mix(text: &str) -> Result<MixDraw, String> {
    let (side, share) = text.split_once(':').unwrap_or((text, ""));
    let mixes_images = match side {
        "image" => true,
        "text" => false,
        _ => return Err(format!("{side:?} is neither image nor text")),
    };
    let alpha = share
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    match alpha {
        Some(alpha) => Ok(MixDraw {
            alpha,
            mixes_images,
        }),
        None => Err(format!(
            "{share:?} is no share from 0 to 1, as in {side}:0.3"
        )),
    }
}

/// Opens a model whose weights are variables where a loss is asked for.
fn load(args: &Args, output: &Output) -> Result<Opened> {
    let path = &args.checkpoint;
    let is_recipe = (path.extension()).is_some_and(|ending| ending == "yaml" || ending == "yml");
    let target = match is_recipe {
        true => Target::Merge(
            path.display().to_string(),
            Box::new(MergeRecipe::open(path)?),
        ),
        false => Target::File(path.clone()),
    };
    let device = args.model.device()?;
    let found = target.find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let (overrides, dtype) = (args.model.overrides(), args.model.precision.dtype());
    let (blueprint, weights) = models::prepare(opened.checkpoint, &overrides, &device, dtype)?;
    let weights = match args.loss {
        Some(_) => weights.trainable(),
        None => weights,
    };
    Ok(Opened::build(blueprint, weights)?)
}

/// Gradients under the names that the checkpoint has for their variables.
fn by_key(computed: &Computed, weights: &Weights) -> BTreeMap<String, Tensor> {
    let gradients = computed.gradients.iter().map(|(name, gradient)| {
        let key = weights.key_of(name).unwrap_or(name);
        (key.to_owned(), gradient.clone())
    });
    gradients.collect()
}

fn write(tensors: &BTreeMap<String, Tensor>, path: &Path, force: bool) -> Result<()> {
    let options = WriteOptions {
        force,
        ..WriteOptions::new(path)
    };
    Ok(forward::write(tensors, &BTreeMap::new(), &options)?)
}

fn shapes(tensors: &BTreeMap<String, Tensor>) -> serde_json::Value {
    let shapes = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), json!(tensor.dims())));
    serde_json::Value::Object(shapes.collect())
}

fn list(named: &dyn NamedPasses, family: &'static str, output: &Output) -> Result<ExitCode> {
    let (inputs, passes) = (named.inputs(), named.passes());
    let losses: Vec<_> = losses::of_family(family).collect();
    if output.json {
        let inputs: Vec<String> = inputs.iter().map(ToString::to_string).collect();
        let reads = |name: &str, inputs: &[&str]| json!({ "name": name, "inputs": inputs });
        output.json(&json!({
            "family": family,
            "inputs": inputs,
            "passes": passes.iter().map(|p| reads(p.name, p.inputs)).collect::<Vec<_>>(),
            "losses": losses.iter().map(|l| reads(l.name, l.inputs)).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line("passes")?;
    for pass in &passes {
        output.line(format!("  {:<14} {}", pass.name, pass.inputs.join(", ")))?;
    }
    output.line("losses")?;
    for loss in &losses {
        output.line(format!("  {:<14} {}", loss.name, loss.inputs.join(", ")))?;
    }
    output.line("tensors")?;
    for input in &inputs {
        output.line(format!("  {input}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
