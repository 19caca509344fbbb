//! `vlmerge classifier`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use evaluate::datasets::classes::{CLASSES, ClassSet};
use evaluate::tasks::zero_shot_classes::classifier_rows;
use evaluate::text::Tokenizer;
use merge::plan::{Action, Entry, Generator, PlanBuilder};
use merge::provenance::Hashes;
use merge::{DType, TensorInfo};

use crate::args::model::ModelArgs;
use crate::args::write::WriteArgs;
use crate::output::{Output, UsageError};
use crate::plan_view;
use crate::target::Target;

const EXAMPLES: &str = "\
Examples:
  vlmerge classifier clip/ start.safetensors --data data --dataset pets --split train \\
      --tokenizer clip/
  vlmerge pretrain docs/recipes/train/clip_classify.yaml --out RUN

The output is the model with classifier.weight: a row for each class, 100 times the feature of its
texts, so that it classifies as zero-shot classification does. A recipe with `trainable` keeps it
as it is while the image tower is fine-tuned.";

/// Flags of `vlmerge classifier`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A CLIP or SigLIP
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The checkpoint to write
    #[arg(required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Folder of data sets with folders of classes
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Data set in that folder
    #[arg(long, value_name = "NAME", default_value = "imagenet1k")]
    dataset: String,
    /// Split whose classes count
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Tokenizer: a tokenizer.json or list of merges, or a folder with one
    #[arg(long, value_name = "NAME")]
    tokenizer: String,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// Values that are in memory.
pub(super) struct Values(pub(super) Vec<f32>);

impl Generator for Values {
    fn fill(&self, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0[first..first + out.len()]);
    }
}

/// The weights of the classifier of images.
const KEY: &str = "classifier.weight";

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let set = ClassSet::open(&args.data, &args.dataset, &args.split)?;
    let texts = set.texts(&args.data.join(&args.dataset))?;
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let device = args.model.device()?;
    let found = Target::File(args.checkpoint.clone()).find(&Hashes::default(), output)?;
    let opened = found.open(&args.model, output)?;
    let model = opened.load(&args.model, &device, output)?;
    if model.family() != "clip" {
        let family = model.family();
        let what = format!(
            "models of the family {family} have no classifier of features; give a CLIP or SigLIP"
        );
        return Err(UsageError(what).into());
    }
    let runner = args
        .model
        .runner(model.as_ref(), Some(&tokenizer), &device, output)?;
    let (rows, width) = classifier_rows(&runner, &texts)?;
    // As the model runs, and as training writes it.
    let spelling = merge::layouts::ClipSpelling::HUGGING_FACE;
    let source = merge::layouts::clip::respelled(Arc::clone(&opened.checkpoint), spelling)?;
    let recipe = format!(
        "classifier: {{ dataset: {}, split: {}, classes: {}, templates: {} }}",
        args.dataset,
        args.split,
        set.classes().len(),
        texts.n_templates()
    );
    let mut plan = PlanBuilder::new(recipe);
    let index = plan.source(Arc::clone(&source));
    for (key, _) in source.tensors() {
        match key == KEY {
            true => plan.drop_tensor(
                merge::plan::TensorRef {
                    source: index,
                    key: key.to_owned(),
                },
                "replaced",
            ),
            false => plan.copy(index, key, "copied")?,
        }
    }
    plan.add(Entry {
        name: KEY.to_owned(),
        info: TensorInfo {
            dtype: DType::F32,
            shape: vec![rows.len() / width.max(1), width],
        },
        action: Action::Generate(Arc::new(Values(rows))),
        why: "texts of the classes".to_owned(),
    })?;
    let plan = plan.note(CLASSES, serde_json::to_string(set.classes())?);
    let plan = plan.finish()?;
    plan_view::carry_out(&plan, args.out, &args.write, false, output)
}
