//! The one loop.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use evaluate::models::Multiway;
use evaluate::nn::{Buffers, Gradients, Tape};
use evaluate::text::Tokenizer;
use merge::Progress;

use super::update::{Updated, Updater};
use super::{Best, Measured, RunFolder, Start, TrainState, Validation, write_model};
use crate::batch::Batch;
use crate::collective::Collective;
use crate::data::{self, Loaded, Loader, Order};
use crate::log::{Log, Record};
use crate::objectives::{self, Loss, Needs, Objective, Randomness, Shared, Step};
use crate::optim::LossScale;
use crate::recipe::{Init, ObjectiveSettings, Span, TrainRecipe};
use crate::{Error, Result};

/// Where a run takes place.
pub struct Where<'a> {
    /// The folder of the run.
    pub folder: &'a Path,
    /// The device.
    pub device: Device,
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
}

/// How a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// The user stopped it; it can be taken up.
    Stopped,
}

/// What a run takes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Numbers that are variables.
    pub n_parameters: u64,
    /// Bytes of gradients and both moments.
    pub update_bytes: u64,
    /// Bytes that blocks keep for their backward pass, by estimate.
    pub activation_bytes: u64,
}

/// A run under way.
pub struct Trainer<'a> {
    recipe: TrainRecipe,
    place: Where<'a>,
    folder: RunFolder,
    objectives: Vec<(Box<dyn Objective>, f64)>,
    start: Start,
    updater: Updater,
    gradients: Gradients,
    buffers: Buffers,
    loader: Arc<Loader>,
    order: Order,
    n_parts: usize,
    n_steps: u64,
    validation: Option<Validation>,
    state: TrainState,
    log: Option<Log>,
    dtype: DType,
}

/// Numbers of a step, summed over its parts.
#[derive(Default)]
struct Told {
    /// Name, sum, cases: averaged at the end, over all ranks.
    values: Vec<(String, f64, f64)>,
}

impl Told {
    fn add(&mut self, name: &str, sum: f64, n: f64) {
        match self.values.iter_mut().find(|(known, ..)| known == name) {
            Some((_, total, count)) => {
                *total += sum;
                *count += n;
            }
            None => self.values.push((name.to_owned(), sum, n)),
        }
    }
}

impl<'a> Trainer<'a> {
    /// Opens data and weights, and takes up the newest state of the folder if there is one.
    ///
    /// # Errors
    /// When the recipe, a file or the weights are wrong, or the folder holds another run.
    pub fn open(recipe: TrainRecipe, place: Where<'a>) -> Result<Self> {
        recipe.check()?;
        let folder = RunFolder::open(place.folder)?;
        let dtype = dtype(&recipe.precision)?;
        let objectives = (recipe.objectives.iter()).map(objective);
        let objectives: Vec<(Box<dyn Objective>, f64)> = objectives.collect::<Result<_>>()?;
        let needs = objectives
            .iter()
            .fold(Needs::default(), |needs, (o, _)| needs.and(o.needs()));
        let data = &recipe.data;
        let parts = data.train.iter().map(|split| {
            data::open(
                &data.folder,
                &split.dataset,
                &split.split,
                data.without_repeats,
            )
        });
        let examples: Arc<dyn data::Examples> =
            Arc::new(data::Joined::new(parts.collect::<Result<_>>()?));
        let tokenizer = Arc::new(Tokenizer::open(&data.tokenizer)?);

        let kept = folder.kept()?.pop();
        let checkpoint = match &kept {
            Some((_, state)) => Init::from_checkpoint(state.join("model.safetensors")),
            None => recipe.init.clone(),
        };
        let is_nlvr2 = objectives.iter().any(|(o, _)| o.name() == "nlvr2");
        let checkpoint = checkpoint.open(&recipe.model, is_nlvr2, place.progress)?;
        let start = Start::load(
            checkpoint,
            &recipe.model,
            objectives.iter().map(|(objective, _)| objective.as_ref()),
            examples.n_answers(),
            recipe.seed,
            &place.device,
            dtype,
        )?;
        let (found, expected) = (tokenizer.vocabulary_size(), start.config.vocabulary);
        if found != expected {
            return Err(evaluate::Error::OtherVocabulary {
                path: tokenizer.path().into(),
                found,
                expected,
            }
            .into());
        }
        let n_answers = match examples.n_answers() {
            None => None,
            Some(known) => {
                let n_classes = start.model.heads().vqa()?.n_classes();
                if known > n_classes {
                    return Err(Error::TooManyAnswers { known, n_classes });
                }
                Some(n_classes)
            }
        };
        let order = Order::new(examples.len(), recipe.batch_size, recipe.seed);
        let n_parts = n_parts(&recipe, &order, place.collective.size())?;
        let n_steps = recipe.length.steps(order.n_batches());
        let mut updater = Updater::new(&recipe.optim, n_steps, &start.variables)?;
        let fingerprint = fingerprint(&recipe)?;
        let mut state = TrainState {
            recipe: fingerprint.clone(),
            loss_scale: (dtype == DType::F16).then(|| LossScale::new(recipe.optim.loss_scale)),
            ..TrainState::default()
        };
        if let Some((_, kept)) = &kept {
            let path = kept.join("state.safetensors");
            let (found, moments) = TrainState::read(&path)?;
            if found.recipe != fingerprint {
                return Err(Error::BadState {
                    path,
                    reason: "it is the state of another recipe; give another --out".into(),
                });
            }
            updater.resume(moments, &recipe.optim, &start.variables)?;
            state = found;
        }
        let resumed_at = kept.is_some().then_some(state.step);
        let is_first = place.collective.is_first();
        let log = is_first
            .then(|| Log::open(folder.path(), resumed_at))
            .transpose()?;
        if is_first {
            let yaml = recipe.to_yaml()?;
            merge::io::write_file(&folder.file("recipe.yaml"), yaml.as_bytes(), true)?;
        }
        let validation = recipe
            .validation
            .as_ref()
            .map(|v| Validation::open(v, data));
        let gradients = Gradients::of(updater.trained(&start.variables).map(|(_, var)| var));
        let loader = Loader::new(
            examples,
            tokenizer,
            start.config.text_len,
            start.config.image_size,
            needs,
            recipe.seed,
        )
        .answering(n_answers)
        .augmented(&recipe.augmentation, recipe.masking)?;
        Ok(Self {
            loader: Arc::new(loader),
            validation: validation.transpose()?,
            recipe,
            place,
            folder,
            objectives,
            start,
            updater,
            gradients,
            buffers: Buffers::default(),
            order,
            n_parts,
            n_steps,
            state,
            log,
            dtype,
        })
    }

    /// Where the run stands.
    #[must_use]
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Steps of the whole run.
    #[must_use]
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// The weights and the model.
    #[must_use]
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// What the run takes in memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let variables = self.start.variables.values();
        let n_parameters: u64 = variables.map(|variable| variable.elem_count() as u64).sum();
        let trained = self.updater.trained(&self.start.variables);
        let n_trained: u64 = trained.map(|(_, var)| var.elem_count() as u64).sum();
        let config = &self.start.config;
        let n_tokens = (config.n_patches() + 1 + config.text_len) as u64;
        let part = self.order.batch_size() / self.place.collective.size() / self.n_parts;
        // Input, norms, packed projections, attention, the FFN before and after GELU, sums.
        let per_token = match self.recipe.checkpoint_activations {
            true => config.width,
            false => 10 * config.width + 2 * config.ffn_width,
        };
        let per_block = part as u64 * n_tokens * 4 * per_token as u64;
        Memory {
            n_parameters,
            update_bytes: 3 * 4 * n_trained,
            activation_bytes: per_block * config.n_blocks as u64,
        }
    }

    /// Trains to the end, or until the user stops it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the part that is not, the last good state being kept; when data
    /// cannot be read, the disk is full or a device fails.
    pub fn run(&mut self) -> Result<Ended> {
        let progress = self.place.progress;
        progress.start_items("steps", self.n_steps.saturating_sub(self.state.step));
        let ended = self.run_steps();
        progress.finish();
        let ended = ended?;
        if ended == Ended::Done {
            if self.validation.is_some() && self.state.best.map(|b| b.step) != Some(self.state.step)
            {
                self.validate()?;
            }
            self.save()?;
            if self.place.collective.is_first() {
                self.write_weights("model.safetensors")?;
            }
        }
        self.place.collective.barrier()?;
        Ok(ended)
    }

    fn run_steps(&mut self) -> Result<Ended> {
        let (rank, size) = (self.place.collective.rank(), self.place.collective.size());
        let n_workers = rayon::current_num_threads();
        let from = self.state.place;
        let mut loaded = data::batches(
            &self.loader,
            self.order,
            from,
            (rank, size),
            self.n_parts,
            n_workers,
        );
        let per_epoch = self.order.n_batches();
        let save_every = self.recipe.save.every.map(|every| every.steps(per_epoch));
        let validate_every = self
            .recipe
            .validation
            .as_ref()
            .map(|v| v.every.steps(per_epoch));
        let is_due =
            |every: Option<u64>, step: u64| every.is_some_and(|n| step.is_multiple_of(n.max(1)));
        while self.state.step < self.n_steps {
            if self.is_stopped()? {
                self.save()?;
                return Ok(Ended::Stopped);
            }
            if let Err(error) = self.step(&mut loaded) {
                if matches!(error, Error::NotFinite { .. }) {
                    // The weights are those before the step. If they are not good either, and so
                    // are refused, the states before stay; the first error is the one to tell of.
                    let _ = self.save();
                }
                return Err(error);
            }
            self.place.progress.advance(1);
            let step = self.state.step;
            if is_due(validate_every, step) {
                self.validate()?;
            }
            if is_due(save_every, step) && step < self.n_steps {
                self.save()?;
            }
        }
        Ok(Ended::Done)
    }

    /// Whether any rank was asked to stop: all must agree, or some would wait for others.
    fn is_stopped(&self) -> Result<bool> {
        let mut asked = [f64::from(u8::from(self.place.progress.is_cancelled()))];
        self.place.collective.sum_f64(&mut asked)?;
        Ok(asked[0] > 0.0)
    }

    fn step(&mut self, loaded: &mut impl Iterator<Item = evaluate::Result<Loaded>>) -> Result<()> {
        let started = Instant::now();
        let (mut told, mut waited) = (Told::default(), 0.0);
        self.gradients.clear();
        let scale = self.state.loss_scale.as_ref().map_or(1.0, LossScale::scale);
        for part in 0..self.n_parts {
            let waiting = Instant::now();
            let part_loaded = loaded.next().ok_or(Error::NoData)??;
            waited += waiting.elapsed().as_secs_f64();
            let batch = part_loaded.batch(&self.place.device, self.dtype)?;
            let draws = self.state.step * self.n_parts as u64 + part as u64;
            self.backward(&batch, draws, scale, &mut told)?;
        }
        let collective = self.place.collective;
        self.updater
            .exchange(&self.start.variables, &mut self.gradients, collective)?;
        // Sums over parts and ranks become means.
        let factor = 1.0 / (self.n_parts as f64 * collective.size() as f64 * scale);
        let norm = self
            .updater
            .norm(&self.start.variables, &self.gradients, factor)?;
        let updated = self.update(norm, factor)?;
        self.state.step += 1;
        self.state.place = self.state.place.next(&self.order);
        self.state.examples += self.order.batch_size() as u64;
        let seconds = started.elapsed().as_secs_f64();
        told.add("seconds", seconds, 1.0);
        told.add("seconds_waiting_for_data", waited, 1.0);
        self.tell(told, updated)
    }

    /// Adds the gradients of every objective on a part of the batch.
    fn backward(&mut self, batch: &Batch, draws: u64, scale: f64, told: &mut Told) -> Result<()> {
        let shared = Shared::default();
        let mut total = 0.0;
        for (objective, weight) in &self.objectives {
            let tape = match self.recipe.checkpoint_activations {
                true => Tape::checkpointing(),
                false => Tape::new(),
            }
            .reusing(&self.buffers);
            let step = Step {
                model: &self.start.model,
                batch,
                collective: self.place.collective,
                randomness: Some(Randomness {
                    seed: self.recipe.seed,
                    step: draws,
                    drop_path: self.recipe.drop_path,
                    dropout: self.recipe.dropout,
                }),
                tape: Some(&tape),
                shared: &shared,
            };
            let Loss {
                value,
                reported,
                measures,
            } = objective.loss(&step)?;
            if !reported.is_finite() {
                let part = format!("the loss {}", objective.name());
                return Err(Error::NotFinite { part });
            }
            total += weight * reported;
            told.add(&format!("loss/{}", objective.name()), reported, 1.0);
            for (name, sum, n) in measures {
                told.add(name, sum, n);
            }
            let value = (value.to_dtype(DType::F32)? * (weight * scale))?;
            tape.backward(&value, &mut self.gradients)?;
        }
        told.add("loss", total, 1.0);
        Ok(())
    }

    fn update(&mut self, norm: f64, factor: f64) -> Result<Option<Updated>> {
        if let Some(scale) = &mut self.state.loss_scale {
            scale.note(norm.is_finite());
            if !norm.is_finite() {
                return Ok(None);
            }
        } else if !norm.is_finite() {
            let name = self
                .updater
                .not_finite(&self.start.variables, &self.gradients)?;
            let part = match name {
                Some(name) => format!("the gradient of `{name}`"),
                None => "the norm of the gradients".into(),
            };
            return Err(Error::NotFinite { part });
        }
        let updates = self.state.updates;
        let variables = &self.start.variables;
        let updated = (self.updater).update(updates, variables, &self.gradients, factor, norm)?;
        self.state.updates += 1;
        self.start.recast()?;
        Ok(Some(updated))
    }

    /// Averages the numbers of a step over the ranks and writes them down.
    fn tell(&mut self, told: Told, updated: Option<Updated>) -> Result<()> {
        let mut sums: Vec<f64> = told
            .values
            .iter()
            .flat_map(|(_, sum, n)| [*sum, *n])
            .collect();
        self.place.collective.sum_f64(&mut sums)?;
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let mut record = Record {
            step: self.state.step,
            examples: self.state.examples,
            ..Record::default()
        };
        for ((name, ..), pair) in told.values.into_iter().zip(sums.chunks_exact(2)) {
            if pair[1] > 0.0 {
                record.values.insert(name, pair[0] / pair[1]);
            }
        }
        if let Some(seconds) = record.values.get("seconds").copied() {
            let rate = self.order.batch_size() as f64 / seconds.max(1e-9);
            record.values.insert("examples_per_second".into(), rate);
        }
        if let Some(updated) = updated {
            record.values.insert("rate".into(), updated.rate);
            record.values.insert("gradient_norm".into(), updated.norm);
        }
        log.write(&record)
    }

    /// Measures on validation data, and keeps the best weights.
    fn validate(&mut self) -> Result<()> {
        let collective = self.place.collective;
        if collective.is_first() {
            self.updater.swap_averages(&self.start.variables)?;
            let measured = self.measure();
            let step = self.state.step;
            if let Ok(Some(measured)) = &measured {
                self.note_best(measured, step)?;
            }
            self.updater.swap_averages(&self.start.variables)?;
            measured?;
        }
        collective.barrier()
    }

    fn measure(&mut self) -> Result<Option<Measured>> {
        let Some(validation) = &self.validation else {
            return Ok(None);
        };
        let model: Multiway = self.start.frozen()?;
        let (device, progress) = (&self.place.device, self.place.progress);
        let tokenizer = &self.loader.tokenizer;
        let measured = validation.measure(&model, tokenizer, device, self.dtype, progress)?;
        if let Some(log) = &mut self.log {
            let values = measured.values.iter();
            log.write(&Record {
                step: self.state.step,
                examples: self.state.examples,
                values: values
                    .map(|(name, value)| (format!("validation/{name}"), *value))
                    .collect(),
            })?;
        }
        Ok(Some(measured))
    }

    fn note_best(&mut self, measured: &Measured, step: u64) -> Result<()> {
        let value = measured.chosen;
        if self.state.best.is_some_and(|best| best.value >= value) {
            return Ok(());
        }
        self.state.best = Some(Best { step, value });
        self.write_weights("best.safetensors")?;
        let best = serde_json::json!({
            "step": step,
            "chosen": value,
            "values": measured.values.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        });
        let text = format!("{best:#}\n");
        merge::io::write_file(&self.folder.file("best.json"), text.as_bytes(), true)?;
        Ok(())
    }

    fn write_weights(&self, name: &str) -> Result<()> {
        self.write_weights_to(&self.folder.file(name))
    }

    fn write_weights_to(&self, path: &Path) -> Result<()> {
        let variables = self.start.variables.iter();
        let tensors: std::collections::BTreeMap<String, Tensor> = variables
            .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
            .collect();
        let (weights, config) = (&self.start.weights, &self.start.config);
        write_model(path, weights, &tensors, config, &self.recipe.to_yaml()?)
    }

    /// Keeps the state.
    fn save(&mut self) -> Result<()> {
        if self.place.collective.is_first() {
            let (step, keep) = (self.state.step, self.recipe.save.keep);
            self.updater.gather_averages();
            let this = &*self;
            let moments = this.updater.kept_moments();
            this.folder.keep(step, keep, |place| {
                this.write_weights_to(&place.join("model.safetensors"))?;
                this.state.write(&place.join("state.safetensors"), moments)
            })?;
        }
        self.place.collective.barrier()
    }
}

fn dtype(precision: &str) -> Result<DType> {
    match precision {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        other => Err(Error::BadSetting {
            key: "precision".into(),
            reason: format!("`{other}` is none of f32, bf16 and f16"),
        }),
    }
}

fn objective(settings: &ObjectiveSettings) -> Result<(Box<dyn Objective>, f64)> {
    Ok((objectives::by_name(&settings.name)?, settings.weight))
}

/// How many parts a rank's share of a batch is computed in.
fn n_parts(recipe: &TrainRecipe, order: &Order, n_ranks: usize) -> Result<usize> {
    let bad = |reason: String| Error::BadSetting {
        key: "batch_size".into(),
        reason,
    };
    let batch = order.batch_size();
    if !batch.is_multiple_of(n_ranks) {
        return Err(bad(format!(
            "{batch} examples cannot be shared by {n_ranks} ranks"
        )));
    }
    let share = batch / n_ranks;
    let per_part = recipe.per_device_batch.unwrap_or(share).min(share);
    if !share.is_multiple_of(per_part) {
        return Err(bad(format!(
            "{share} examples of a rank are no multiple of {per_part}"
        )));
    }
    Ok(share / per_part)
}

/// What two recipes must have in common for one to go on with the state of the other.
fn fingerprint(recipe: &TrainRecipe) -> Result<String> {
    let mut recipe = recipe.clone();
    recipe.save.every = None::<Span>;
    recipe.save.keep = 1;
    recipe.to_yaml()
}
