//! The one loop.

mod keep;
mod plan;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};
use cpu_time::ProcessTime;
use evaluate::nn::{Buffers, Gradients};
use merge::Progress;

use super::update::{Updated, Updater};
use super::{Backward, Memory, RunFolder, Start, Told, TrainState, Validation, looks_beyond};
use crate::batch::{Batch, Images, Texts};
use crate::collective::Collective;
use crate::data::{self, Loaded, Loader, Order, Place};
use crate::log::{Log, Record};
use crate::objectives::{Needs, Objective, Others, Randomness};
use crate::optim::LossScale;
use crate::recipe::CheckedRecipe;
use crate::{Error, Result};

pub use plan::{Prepared, TrainPlan};

/// The folder, the device and the ranks of a run.
pub struct Where<'a> {
    /// The folder of the run.
    pub folder: &'a Path,
    /// The device.
    pub device: Device,
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// The same ranks, to share the experts of mixtures out if the recipe says so.
    pub experts: Option<Rc<dyn Collective>>,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
}

impl Where<'_> {
    /// The ranks that share the experts of mixtures out, where the recipe says so and there are several.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where they should and [`Where::experts`] is not given.
    fn sharing(&self, recipe: &CheckedRecipe) -> Result<Option<&Rc<dyn Collective>>> {
        if !recipe.share_experts || self.collective.size() == 1 {
            return Ok(None);
        }
        let missing = || Error::BadSetting {
            key: "share_experts".into(),
            reason: "the run was started without the ranks to share them with (`Where::experts`)"
                .into(),
        };
        self.experts.as_ref().map(Some).ok_or_else(missing)
    }
}

/// The ways in which a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// The user stopped it; it can be resumed.
    Stopped,
}

/// The pace of a run since it was opened.
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
    /// The factor of the balance of routers.
    balance: f64,
    /// Names of classes, where the model's file does not have them yet.
    notes: Vec<(&'static str, String)>,
    validation: Option<Validation>,
    /// The last step after which there was validation.
    validated_at: Option<u64>,
    state: TrainState,
    log: Option<Log>,
    pace: Pace,
    dtype: DType,
    memory: Memory,
}

impl<'a> Trainer<'a> {
    /// The state of the run.
    #[must_use]
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// The pace since the run was opened.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// The memory that the run takes.
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
            self.write_weights("model.safetensors")?;
            if self.place.collective.is_first() {
                self.folder.seal()?;
            }
        }
        self.place.collective.barrier()?;
        Ok(ended)
    }

    fn run_steps(&mut self) -> Result<Ended> {
        let (rank, size) = (self.place.collective.rank(), self.place.collective.size());
        let n_workers = rayon::current_num_threads();
        let from = self.state.place;
        let n_passes = 1 + usize::from(looks_beyond(&self.objectives, self.n_parts));
        let mut loaded = data::batches(
            &self.loader,
            self.order.clone(),
            from,
            (rank, size),
            (self.n_parts, n_passes),
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
        let (started, processor) = (Instant::now(), ProcessTime::try_now());
        let mut told = Told::default();
        self.updater.bound(&self.start.variables)?;
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
            .norm(&self.start.variables, &self.gradients, factor, collective)?;
        let updated = self.update(norm, factor)?;
        self.state.step += 1;
        self.state.place = self.state.place.next(&self.order);
        self.state.examples += self.order.batch_size() as u64;
        let seconds = started.elapsed().as_secs_f64();
        told.add("seconds", seconds, 1.0);
        // Of all threads of the process, where the system tells.
        if let Ok(processor) = processor.and_then(|since| since.try_elapsed()) {
            told.add("processor_seconds", processor.as_secs_f64(), 1.0);
        }
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
        let (device, dtype) = (&self.place.device, self.dtype);
        let backward = Backward {
            model: self.start.model.as_ref(),
            objectives: &self.objectives,
            collective: self.place.collective,
            randomness: Randomness {
                seed: self.recipe.seed,
                step: self.state.step,
                drop_path: self.recipe.drop_path,
                dropout: self.recipe.dropout,
                mix: None,
            },
            drops: None,
            routing: None,
            balance: self.balance,
            experts: self.place.sharing(&self.recipe)?,
            recomputes: self.recipe.checkpoint_activations,
            buffers: &self.buffers,
            scale,
            n_parts: self.n_parts,
        };
        let waited = Cell::new(0.0);
        let whole: RefCell<Option<(Place, Arc<[usize]>)>> = RefCell::default();
        let mut parts = (0..).map(|_| {
            let waiting = Instant::now();
            let part = loaded.next().ok_or(Error::NoData)??;
            waited.set(waited.get() + waiting.elapsed().as_secs_f64());
            whole.replace(Some((part.place, Arc::clone(&part.whole))));
            part.batch(device, dtype)
        });
        let found = match backward.is_twice() {
            true => Some(backward.look(&mut parts.by_ref().take(self.n_parts), told)?),
            false => None,
        };
        for batch in parts.take(self.n_parts) {
            let batch = batch?;
            let others = FromData {
                loader: &self.loader,
                whole: whole.borrow().clone(),
                device,
                dtype,
            };
            let found = found.as_ref().map(|found| (found, &others as &dyn Others));
            backward.learn(&batch, found, told, &mut self.gradients)?;
        }
        Ok(waited.get())
    }

    fn update(&mut self, norm: f64, factor: f64) -> Result<Option<Updated>> {
        let collective = self.place.collective;
        if let Some(scale) = &mut self.state.loss_scale {
            scale.note(norm.is_finite());
            if !norm.is_finite() {
                return Ok(None);
            }
        } else if !norm.is_finite() {
            let name =
                self.updater
                    .not_finite(&self.start.variables, &self.gradients, collective)?;
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
            collective,
        )?;
        self.state.updates += 1;
        self.start.recast()?;
        Ok(Some(updated))
    }

    /// Averages the numbers of a step over the ranks and writes them down.
    fn tell(&mut self, told: Told, updated: Option<Updated>) -> Result<()> {
        let mut sums: Vec<f64> = told
            .values
            .values()
            .flat_map(|(sum, n)| [*sum, *n])
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
        for ((name, _), pair) in told.values.into_iter().zip(sums.chunks_exact(2)) {
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

/// Examples of a batch, read again by their rows in it.
struct FromData<'a> {
    loader: &'a Loader,
    whole: Option<(Place, Arc<[usize]>)>,
    device: &'a Device,
    dtype: DType,
}

impl FromData<'_> {
    fn load(&self, rows: &[u32], wanted: Needs) -> Result<Batch> {
        let (place, whole) = self.whole.as_ref().ok_or(Error::NoData)?;
        let indices: Vec<usize> = rows.iter().map(|&row| whole[row as usize]).collect();
        let loaded = self.loader.load_again(*place, &indices, wanted)?;
        loaded.batch(self.device, self.dtype)
    }
}

impl Others for FromData<'_> {
    fn images(&self, rows: &[u32]) -> Result<Images> {
        let wanted = Needs {
            image: true,
            ..Needs::NOTHING
        };
        let image = self.load(rows, wanted)?.image;
        image.ok_or(Error::NotInBatch { what: "image" })
    }

    fn texts(&self, rows: &[u32]) -> Result<Texts> {
        let wanted = Needs {
            text: true,
            ..Needs::NOTHING
        };
        let text = self.load(rows, wanted)?.text;
        text.ok_or(Error::NotInBatch { what: "text" })
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
