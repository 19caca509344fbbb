//! Gram matrices of blocks above blocks that are merged already: RegMean++.
//!
//! The blocks are merged one after the other. For each block, the inputs of its layers are summed in each model with the
//! mean of all models' embeddings, the merged blocks below it, and the model's own block; then the block is merged by
//! `regmean`. The result is gram files, by which a plain recipe merges the same model.
//!
//! Nguyen et al. 2025, "RegMean++", <https://arxiv.org/abs/2508.03121>, section 3.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device};
use merge::execute::{RunOptions, in_memory};
use merge::gram::{Gram, GramRecord, GramStore};
use merge::io::{Held, OpenOptions, WriteOptions, overlaid};
use merge::layouts::{self, ClipSpelling, clip};
use merge::progress::Silent;
use merge::provenance::InputFile;
use merge::recipe::{ModelRef, OnMissing, OnMissingGram, Parameter};
use merge::{BlockId, Checkpoint, Expert, MergePlan, MergeRecipe, Progress, Role};
use serde_json::{Value, json};

use super::grams::{GramJob, GramSums};
use super::key_of;
use crate::models::{self, Overrides};
use crate::ranks::Collective;
use crate::tasks::{Runner, Task};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// A model, and the data that its inputs come from.
pub struct LayerwiseModel {
    /// The checkpoint, as recipes name it.
    pub path: PathBuf,
    /// The same, open.
    pub checkpoint: Arc<Checkpoint>,
    /// Its files with their hashes.
    pub files: Vec<InputFile>,
    /// The task, whose passes are run.
    pub task: Box<dyn Task>,
    /// Splits the task's texts.
    pub tokenizer: Option<Tokenizer>,
    /// The data, as files of sums call them.
    pub data: String,
    /// Further settings that the sums depend on.
    pub identity: Value,
}

/// The models, the data and the settings of a run.
pub struct LayerwiseJob<'a> {
    /// The models.
    pub models: Vec<LayerwiseModel>,
    /// The folder of the gram files and the recipe.
    pub out: PathBuf,
    /// `shrink` of `regmean`.
    pub shrink: f64,
    /// `ridge` of `regmean`.
    pub ridge: f64,
    /// Whether rows of padding count.
    pub counts_padding: bool,
    /// Facts about the models that their checkpoints lack.
    pub overrides: Overrides,
    /// The device.
    pub device: Device,
    /// The dtype in which models compute.
    pub dtype: DType,
    /// Examples of a batch.
    pub batch_size: usize,
    /// The processes that share the batches.
    pub ranks: &'a dyn Collective,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
    /// Time between two saves of sums that are not complete.
    pub save_every: Duration,
}

/// The files of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layerwise {
    /// The gram file of each model.
    pub grams: Vec<PathBuf>,
    /// The recipe that merges by them.
    pub recipe: PathBuf,
    /// Gram matrices of each file.
    pub n_grams: usize,
}

/// The blocks of a model, by their numbers: those of several towers that do not feed each other together.
struct Blocks {
    /// The block that a tensor of the family's own spelling is in.
    of_tensor: BTreeMap<String, BlockId>,
    /// The block whose layer a gram matrix is of.
    of_gram: BTreeMap<String, BlockId>,
    n: usize,
}

impl Blocks {
    /// # Errors
    /// [`Error::NoLayerwise`] for a model without blocks, and for one whose stacks feed each other.
    fn of(model: &Checkpoint) -> Result<Self> {
        let layout = layouts::detect(model)?;
        let stacks = layout.dimensions().stacks.len();
        let are_apart = ["clip", "siglip", "zerovl"]
            .iter()
            .any(|family| layout.name().starts_with(family));
        let mut blocks = Self {
            of_tensor: BTreeMap::new(),
            of_gram: BTreeMap::new(),
            n: 0,
        };
        for (key, _) in model.tensors() {
            let (slot, expert): (_, Option<Expert>) = match layout.role(key)? {
                Role::Shared(slot) | Role::Routing(slot) => (slot, None),
                Role::Expert { expert, slot } => (slot, Some(expert)),
                _ => continue,
            };
            let Some(block) = slot.block else {
                continue;
            };
            blocks.n = blocks.n.max(block.index + 1);
            blocks.of_tensor.insert(key.to_owned(), block);
            if let Some(name) = layout.gram_key(&slot, expert) {
                blocks.of_gram.insert(name, block);
            }
        }
        let why = match (blocks.n, stacks) {
            (0, _) => "its names tell no blocks",
            (_, 2..) if !are_apart => {
                "its stacks of blocks feed each other, and nothing says which comes first"
            }
            _ => return Ok(blocks),
        };
        Err(Error::NoLayerwise {
            path: model.path().into(),
            why,
        })
    }
}

impl LayerwiseJob<'_> {
    /// Sums and merges block after block, and writes gram files and a recipe. A run that was stopped goes on with what it
    /// has summed.
    ///
    /// # Errors
    /// [`Error::NoLayerwise`]; as [`GramSums::collect`]; [`merge::Error::SingularGram`] for a layer that has seen too few
    /// rows, and whatever else a merge by `regmean` returns.
    pub fn run(&self) -> Result<Layerwise> {
        let models: Vec<Arc<Checkpoint>> = (self.models.iter())
            .map(|model| clip::respelled(Arc::clone(&model.checkpoint), ClipSpelling::HUGGING_FACE))
            .collect::<merge::Result<_>>()?;
        let Some(first) = models.first() else {
            return Err(Error::NoModels);
        };
        let blocks = Blocks::of(first)?;
        // Outside the blocks all models are averaged.
        let mean = self.merged(None)?;
        let mut over: BTreeMap<String, Held> = BTreeMap::new();
        take(&mean, &mut over, |key| !blocks.of_tensor.contains_key(key))?;
        let mut grams: Vec<BTreeMap<String, Gram>> = vec![BTreeMap::new(); models.len()];
        let mut records = Vec::new();
        for block in 0..blocks.n {
            let below = Arc::new(over);
            let mut files = Vec::with_capacity(models.len());
            records.clear();
            for (index, model) in models.iter().enumerate() {
                let file = self
                    .out
                    .join(format!("block{block}.model{index}.gram.safetensors"));
                let hybrid = Arc::new(overlaid(Arc::clone(model), &below));
                let record = self.sum(index, (block, &blocks), &hybrid, &file)?;
                let store = GramStore::new(open(&file)?.into())?;
                for name in store
                    .checkpoint()
                    .tensors()
                    .map(|(name, _)| name.to_owned())
                {
                    let gram = store.sum(&name)?;
                    grams[index].insert(name, gram);
                }
                records.push(record);
                files.push(file);
            }
            let merged = self.merged(Some(&files))?;
            over = Arc::try_unwrap(below).unwrap_or_else(|shared| shared.as_ref().clone());
            take(&merged, &mut over, |key| {
                blocks
                    .of_tensor
                    .get(key)
                    .is_some_and(|of| of.index == block)
            })?;
        }
        self.write(&grams, &records)
    }

    /// Sums the inputs of a block's layers in a model whose blocks below are merged.
    fn sum(
        &self,
        index: usize,
        (block, blocks): (usize, &Blocks),
        hybrid: &Arc<Checkpoint>,
        file: &Path,
    ) -> Result<GramRecord> {
        let own = &self.models[index];
        let all: Vec<Value> = (self.models.iter())
            .map(|model| json!([model.files, model.data, model.identity]))
            .collect();
        let identity = json!({
            "block": block,
            "models": all,
            "shrink": self.shrink,
            "ridge": self.ridge,
            "of": own.identity,
            "batch_size": self.batch_size,
            "counts_padding": self.counts_padding,
        });
        let key = key_of(&identity);
        // The parts that an earlier run has finished.
        if file.exists()
            && let Some(record) = GramStore::new(open(file)?.into())?.record()
            && record.settings.get(KEY) == Some(&key)
        {
            return Ok(record);
        }
        let opened = models::open(
            Arc::clone(hybrid),
            &self.overrides,
            &self.device,
            self.dtype,
        )?;
        let runner = Runner::new(
            opened.model.as_ref(),
            own.tokenizer.as_ref(),
            &self.device,
            self.dtype,
            self.batch_size,
            self.progress,
        )?
        .shared(self.ranks);
        let whole = file.with_extension("whole.safetensors");
        let mut sums = GramSums::open(GramJob {
            task: own.task.as_ref(),
            runner,
            checkpoint: hybrid,
            files: own.files.clone(),
            data: own.data.clone(),
            shard: None,
            counts_padding: self.counts_padding,
            with_shared: true,
            identity,
            reading: None,
            chosen_by: BTreeMap::new(),
            out: whole.clone(),
            save_every: self.save_every,
        })?;
        sums.collect()?;
        let write = |path: &Path| WriteOptions {
            force: true,
            ..WriteOptions::new(path)
        };
        if let Some((mut grams, mut record)) = sums.finish(&write(&whole))? {
            grams.retain(|name, _| blocks.of_gram.get(name).is_some_and(|of| of.index == block));
            record.rows.retain(|name, _| grams.contains_key(name));
            record.settings.insert(KEY.to_owned(), key);
            merge::gram::write(&grams, &record, false, &write(file), &Silent)?;
            match std::fs::remove_file(&whole) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &whole, error));
                }
                _ => {}
            }
        }
        self.ranks.barrier()?;
        let record = GramStore::new(open(file)?.into())?.record();
        record.ok_or_else(|| Error::NoLayerwise {
            path: file.into(),
            why: "it lost its record",
        })
    }

    /// The models merged by gram files of one block, or by nothing at all, in the family's own spelling.
    fn merged(&self, grams: Option<&[PathBuf]>) -> Result<Arc<Checkpoint>> {
        let (plan, _) = MergePlan::resolve(&self.recipe(grams))?;
        let run = RunOptions {
            hash: None,
            ..RunOptions::default()
        };
        let merged = Arc::new(in_memory(&plan, &run, &Silent)?);
        Ok(clip::respelled(merged, ClipSpelling::HUGGING_FACE)?)
    }

    fn recipe(&self, grams: Option<&[PathBuf]>) -> MergeRecipe {
        let models = self.models.iter().enumerate().map(|(index, model)| {
            let mut of = ModelRef::new(&model.path);
            match grams {
                Some(grams) => {
                    let text = grams[index].display().to_string();
                    of.parameters.set("grams", Parameter::Text(text));
                }
                None => of.parameters.set("weight", Parameter::Number(1.0)),
            }
            of
        });
        let mut recipe = MergeRecipe {
            merge_method: if grams.is_some() { "regmean" } else { "linear" }.to_owned(),
            models: models.collect(),
            // A head of one task's own goes along as it is.
            on_missing: OnMissing::Copy,
            ..MergeRecipe::default()
        };
        if grams.is_some() {
            recipe.on_missing_gram = OnMissingGram::Mean;
            recipe
                .parameters
                .set("shrink", Parameter::Number(self.shrink));
            recipe
                .parameters
                .set("ridge", Parameter::Number(self.ridge));
        }
        recipe
    }

    /// Writes the gram files of all blocks and the recipe, and removes those of single blocks. Only the first rank writes.
    fn write(&self, grams: &[BTreeMap<String, Gram>], records: &[GramRecord]) -> Result<Layerwise> {
        let paths: Vec<PathBuf> = (0..self.models.len())
            .map(|index| self.out.join(format!("model{index}.gram.safetensors")))
            .collect();
        let recipe = self.out.join("recipe.yaml");
        if self.ranks.is_first() {
            for ((grams, record), path) in grams.iter().zip(records).zip(&paths) {
                let mut record = record.clone();
                let rows = grams.iter().map(|(name, gram)| (name.clone(), gram.rows()));
                record.rows = rows.collect();
                record.settings.remove(KEY);
                record.settings.insert(
                    "blocks_below".to_owned(),
                    "merged by regmean, one after the other (RegMean++)".to_owned(),
                );
                let write = WriteOptions {
                    force: true,
                    ..WriteOptions::new(path)
                };
                merge::gram::write(grams, &record, false, &write, self.progress)?;
            }
            let yaml = self.recipe(Some(&paths)).to_yaml()?;
            merge::io::write_file(&recipe, yaml.as_bytes(), true)?;
            let kept: BTreeSet<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let listed = std::fs::read_dir(&self.out);
            for entry in listed.map_err(|error| Error::io("list", &self.out, error))? {
                let path = entry
                    .map_err(|error| Error::io("list", &self.out, error))?
                    .path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with("block")
                    && name.ends_with(".gram.safetensors")
                    && !kept.contains(path.as_path())
                {
                    std::fs::remove_file(&path)
                        .map_err(|error| Error::io("remove", &path, error))?;
                }
            }
        }
        self.ranks.barrier()?;
        Ok(Layerwise {
            n_grams: grams.first().map_or(0, BTreeMap::len),
            grams: paths,
            recipe,
        })
    }
}

/// Key of everything that the sums of a block depend on.
const KEY: &str = "of";

fn open(path: &Path) -> Result<Checkpoint> {
    Ok(merge::io::open(path, &OpenOptions::default())?)
}

/// Takes tensors into memory.
fn take(
    from: &Checkpoint,
    over: &mut BTreeMap<String, Held>,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    for (key, info) in from.tensors().filter(|(key, _)| is_wanted(key)) {
        over.insert(key.to_owned(), (info.clone(), from.read_all(key)?));
    }
    Ok(())
}
