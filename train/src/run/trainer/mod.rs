//! The one loop.

mod keep;
mod open;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};
use evaluate::nn::{Buffers, Gradients, Tape};
use merge::Progress;

use super::update::{Updated, Updater};
use super::{Memory, RunFolder, Start, TrainState, Validation};
use crate::batch::Batch;
use crate::collective::Collective;
use crate::data::{self, Loaded, Loader, Order};
use crate::log::{Log, Record};
use crate::objectives::{Loss, Objective, Randomness, Shared, Step};
use crate::optim::LossScale;
use crate::recipe::CheckedRecipe;
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

/// How fast a run went since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Examples that were learned from, by all ranks.
    pub examples: u64,
    /// Seconds of all steps.
    pub seconds: f64,
    /// Seconds of them that this rank's device waited for data.
    pub waited_seconds: f64,
    /// Examples that this rank's worker threads load in a second, when nothing else holds them up.
    pub input_examples_per_second: f64,
}

/// A run under way.
pub struct Trainer<'a> {
    recipe: CheckedRecipe,
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
    /// The answers by class, a JSON list, where the model's file does not have them yet.
    answers: Option<String>,
    validation: Option<Validation>,
    /// The last step after which there was validation.
    validated_at: Option<u64>,
    state: TrainState,
    log: Option<Log>,
    pace: Pace,
    dtype: DType,
    memory: Memory,
}

/// Numbers of a step, summed over its parts.
#[derive(Default)]
struct Told {
    /// Name, sum, cases: averaged at the end, over all ranks.
    values: Vec<(String, f64, f64)>,
    /// The first loss that is not finite.
    not_finite: Option<String>,
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
    /// Where the run stands.
    #[must_use]
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// How fast it has gone since it was opened.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// What the run takes in memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory
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

    /// Trains to the end, or until the user stops it.
    ///
    /// # Errors
    /// [`Error::Diverged`] with the part that is not finite, the last good state being kept; when data
    /// cannot be read, the disk is full or a device fails.
    pub fn run(&mut self) -> Result<Ended> {
        let progress = self.place.progress;
        progress.start_items("steps", self.n_steps.saturating_sub(self.state.step));
        let ended = self.run_steps();
        progress.finish();
        let ended = ended?;
        if ended == Ended::Done {
            if self.validation.is_some() && self.validated_at != Some(self.state.step) {
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
            self.order.clone(),
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
                let Error::NotFinite { part } = error else {
                    return Err(error);
                };
                // The weights are those before the step. If they are not good either, and so are
                // refused, the states before stay; the first error is the one to tell of.
                let _ = self.save();
                let kept = self.folder.kept().ok().and_then(|mut kept| kept.pop());
                return Err(Error::Diverged {
                    part,
                    step: self.state.step + 1,
                    kept: kept.map(|(step, _)| step),
                });
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
        let mut told = Told::default();
        self.gradients.clear();
        let scale = self.state.loss_scale.as_ref().map_or(1.0, LossScale::scale);
        let waited = self.backward_of_parts(loaded, scale, &mut told)?;
        let collective = self.place.collective;
        all_finite(&told, collective)?;
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
        self.pace.examples += self.order.batch_size() as u64;
        self.pace.seconds += seconds;
        self.pace.waited_seconds += waited;
        let n_workers = rayon::current_num_threads();
        let rate = self.loader.examples_per_second(n_workers);
        self.pace.input_examples_per_second = rate;
        // The sum over the ranks.
        let share = 1.0 / collective.size() as f64;
        told.add("input_examples_per_second", rate, share);
        self.tell(told, updated)
    }

    /// Adds the gradients of this rank's share of the batch, part by part; how many seconds it has
    /// waited for data.
    fn backward_of_parts(
        &mut self,
        loaded: &mut impl Iterator<Item = evaluate::Result<Loaded>>,
        scale: f64,
        told: &mut Told,
    ) -> Result<f64> {
        let mut waited = 0.0;
        for _ in 0..self.n_parts {
            let waiting = Instant::now();
            let part = loaded.next().ok_or(Error::NoData)??;
            waited += waiting.elapsed().as_secs_f64();
            let batch = part.batch(&self.place.device, self.dtype)?;
            self.backward(&batch, scale, told)?;
        }
        Ok(waited)
    }

    /// Adds the gradients of every objective on a part of the batch.
    fn backward(&mut self, batch: &Batch, scale: f64, told: &mut Told) -> Result<()> {
        let shared = Shared::default();
        let mut total = 0.0;
        for (objective, weight) in &self.objectives {
            let tape = match self.recipe.checkpoint_activations {
                true => Tape::checkpointing(),
                false => Tape::new(),
            }
            .reusing(&self.buffers);
            let step = Step {
                model: self.start.model.as_ref(),
                batch,
                collective: self.place.collective,
                randomness: Some(Randomness {
                    seed: self.recipe.seed,
                    step: self.state.step,
                    drop_path: self.recipe.drop_path,
                    dropout: self.recipe.dropout,
                }),
                tape: Some(&tape),
                shared: &shared,
            };
            let loss = match objective.loss(&step) {
                // All ranks go on to the end of the step, and learn of it there.
                Err(Error::NotFinite { part }) => {
                    told.not_finite.get_or_insert(part);
                    continue;
                }
                loss => loss?,
            };
            let Loss {
                value,
                reported,
                measures,
            } = loss;
            if !reported.is_finite() {
                let part = || format!("the loss {}", objective.name());
                told.not_finite.get_or_insert_with(part);
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
        let updated = self.updater.update(
            updates,
            variables,
            &self.gradients,
            (factor, norm),
            self.place.collective,
        )?;
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
}

/// Whether all losses of all ranks are finite.
fn all_finite(told: &Told, collective: &dyn Collective) -> Result<()> {
    let mut n = [f64::from(u8::from(told.not_finite.is_some()))];
    collective.sum_f64(&mut n)?;
    match &told.not_finite {
        Some(part) => Err(Error::NotFinite { part: part.clone() }),
        None if n[0] > 0.0 => Err(Error::NotFinite {
            part: "a loss of another rank".into(),
        }),
        None => Ok(()),
    }
}
