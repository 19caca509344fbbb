//! Coefficients of task vectors, learned from pictures without labels: AdaMerging.
//!
//! `W = W⁰ + Σ λᵢ (Wᵢ − W⁰)`, one λ for each model, or for each model and tensor. Each model keeps its own classifier.
//! The λ make the entropy of all models' classes on their own pictures small, by Adam.
//!
//! Yang et al. 2024, "AdaMerging", <https://arxiv.org/abs/2310.02575>.

mod adam;
mod vectors;

use std::path::{Path, PathBuf};

use candle_core::Device;
use evaluate::nn::{Gradients, Tape};
use merge::MergeRecipe;
use merge::Progress;
use merge::layouts::ClipSpelling;
use merge::recipe::{Case, CaseValue, ModelRef, OnMissing, Parameter, Scalar};

use adam::Adam;
use vectors::TaskVectors;

use crate::collective::Alone;
use crate::data::{Order, Place};
use crate::objectives::{Shared, Step};
use crate::recipe::CheckedRecipe;
use crate::run::{Prepared, TrainPlan, Where};
use crate::{Error, Result};

/// The parts of a model that have a coefficient of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// Each model.
    Model,
    /// Each model and tensor, as published ("layer-wise").
    #[default]
    Tensor,
}

/// A model, and the pictures that it is to be sure of.
pub struct AdaModel {
    /// The checkpoint, as recipes name it.
    pub path: PathBuf,
    /// A training recipe that starts from it, with the objective `entropy` and its data.
    pub recipe: CheckedRecipe,
}

/// The task vectors, the data and the settings of a run.
pub struct AdaJob<'a> {
    /// The model that all were fine-tuned from.
    pub base: PathBuf,
    /// The models.
    pub models: Vec<AdaModel>,
    /// The parts of a model that have a coefficient.
    pub grain: Grain,
    /// The first value of all coefficients.
    pub start: f64,
    /// Adam's rate.
    pub rate: f64,
    /// Steps.
    pub n_steps: u64,
    /// The device.
    pub device: Device,
    /// Receives the progress.
    pub progress: &'a dyn Progress,
}

/// Coefficients that are learned.
pub struct AdaMerging<'a> {
    job: AdaJob<'a>,
    prepared: Vec<Prepared>,
    orders: Vec<Order>,
    gradients: Vec<Gradients>,
    vectors: TaskVectors,
    /// By model, then by tensor.
    coefficients: Vec<Vec<f64>>,
    adam: Adam,
}

/// The entropy of a step, and its gradient by the coefficients, each for a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Slope {
    /// Entropies of all models' classes, added up.
    pub entropy: f64,
    /// By model, then by tensor.
    pub gradient: Vec<Vec<f64>>,
}

impl<'a> AdaMerging<'a> {
    /// Opens models and data.
    ///
    /// # Errors
    /// When a file is missing or wrong; [`Error::FreshHead`] for a model without a classifier;
    /// [`Error::BadSetting`] for fewer than two models and for models that share no tensor with the base.
    pub fn open(job: AdaJob<'a>) -> Result<Self> {
        let bad = |key: &str, reason: &str| Error::BadSetting {
            key: key.into(),
            reason: reason.into(),
        };
        if job.models.len() < 2 {
            return Err(bad(
                "models",
                "give at least two: one alone needs no merging",
            ));
        }
        let mut prepared = Vec::with_capacity(job.models.len());
        let mut orders = Vec::with_capacity(job.models.len());
        for model in &job.models {
            let place = Where {
                folder: Path::new(""),
                device: job.device.clone(),
                collective: &Alone,
                experts: None,
                progress: job.progress,
            };
            let found = TrainPlan::fresh(model.recipe.clone(), &place)?.prepared();
            if let Some(name) = found.start.weights.report().fresh.first() {
                return Err(Error::FreshHead { name: name.clone() });
            }
            let n = found.loader.examples.len();
            orders.push(Order::new(n, model.recipe.batch_size, model.recipe.seed));
            prepared.push(found);
        }
        let starts: Vec<_> = prepared.iter().map(|found| &found.start).collect();
        let vectors = TaskVectors::new(&job.base, &starts)?;
        if vectors.names().is_empty() {
            return Err(bad(
                "base",
                "it has no tensor that all models have in its shape",
            ));
        }
        let (n_models, n_tensors) = (starts.len(), vectors.names().len());
        let gradients = starts
            .iter()
            .map(|start| Gradients::of(start.variables.values()));
        let n_learned = match job.grain {
            Grain::Model => n_models,
            Grain::Tensor => n_models * n_tensors,
        };
        Ok(Self {
            gradients: gradients.collect(),
            coefficients: vec![vec![job.start; n_tensors]; n_models],
            adam: Adam::new(job.rate, n_learned),
            prepared,
            orders,
            vectors,
            job,
        })
    }

    /// The tensors that have coefficients.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.vectors.names()
    }

    /// The coefficients, by model, then by tensor.
    #[must_use]
    pub fn coefficients(&self) -> &[Vec<f64>] {
        &self.coefficients
    }

    /// Learns; the entropy of each step.
    ///
    /// # Errors
    /// As [`AdaMerging::slope`]; [`Error::NotFinite`]; [`merge::Error::Cancelled`].
    pub fn learn(&mut self) -> Result<Vec<f64>> {
        let progress = self.job.progress;
        progress.start_items("steps", self.job.n_steps);
        let mut entropies = Vec::new();
        for step in 0..self.job.n_steps {
            let slope = self.slope(step, &self.coefficients.clone())?;
            if !slope.entropy.is_finite() {
                let part = format!("the entropy of step {}", step + 1);
                return Err(Error::NotFinite { part });
            }
            entropies.push(slope.entropy);
            self.update(&slope.gradient);
            progress.advance(1);
            if progress.is_cancelled() {
                progress.finish();
                return Err(merge::Error::Cancelled.into());
            }
        }
        progress.finish();
        Ok(entropies)
    }

    /// The entropy on the pictures of a step, and its gradient, where the coefficients are these.
    ///
    /// # Errors
    /// When a picture cannot be read, or the device fails.
    pub fn slope(&mut self, step: u64, coefficients: &[Vec<f64>]) -> Result<Slope> {
        let mut slope = Slope {
            entropy: 0.0,
            gradient: vec![vec![0.0; self.vectors.names().len()]; self.prepared.len()],
        };
        let merged = self.vectors.merged(coefficients);
        for (index, prepared) in self.prepared.iter().enumerate() {
            self.vectors
                .set(&prepared.start, &merged, &self.job.device)?;
            let order = &self.orders[index];
            let place = Place {
                epoch: step / order.n_batches(),
                batch: step % order.n_batches(),
            };
            let batch = order.clone().from(place).next();
            let (place, examples) = batch.ok_or(Error::NoData)?;
            let loaded = prepared.loader.load(place, 0, &examples)?;
            let batch = loaded.batch(&self.job.device, prepared.dtype)?;
            let gradients = &mut self.gradients[index];
            gradients.clear();
            let shared = Shared::default();
            for (objective, _) in &prepared.objectives {
                let tape = Tape::new();
                let step = Step {
                    tape: Some(&tape),
                    ..Step::plain(prepared.start.model.as_ref(), &batch, &Alone, &shared)
                };
                let loss = objective.loss(&step)?;
                slope.entropy += loss.reported;
                tape.backward(&loss.value, gradients)?;
            }
            self.vectors
                .along(&prepared.start, gradients, &mut slope.gradient)?;
        }
        Ok(slope)
    }

    fn update(&mut self, gradient: &[Vec<f64>]) {
        match self.job.grain {
            Grain::Tensor => {
                let mut values = self.coefficients.concat();
                self.adam.step(&mut values, &gradient.concat());
                let n_tensors = self.vectors.names().len();
                for (own, values) in self.coefficients.iter_mut().zip(values.chunks(n_tensors)) {
                    own.copy_from_slice(values);
                }
            }
            Grain::Model => {
                let mut values: Vec<f64> = self.coefficients.iter().map(|own| own[0]).collect();
                let sums: Vec<f64> = gradient.iter().map(|own| own.iter().sum()).collect();
                self.adam.step(&mut values, &sums);
                for (own, value) in self.coefficients.iter_mut().zip(values) {
                    own.fill(value);
                }
            }
        }
    }

    /// The recipe that merges with these coefficients: `task_arithmetic`, with a `weight` for each tensor. Tensors that
    /// only some of the models have, as classifiers, are left out of its result.
    #[must_use]
    pub fn recipe(&self) -> MergeRecipe {
        let number = move |value: f64| CaseValue::One(Scalar::Number(value));
        let models = self.job.models.iter().zip(&self.coefficients);
        let models = models.map(|(model, own)| {
            let mut of = ModelRef::new(&model.path);
            let weight = match self.job.grain {
                Grain::Model => Parameter::Number(own[0]),
                Grain::Tensor => {
                    let named = self.vectors.names().iter().zip(own);
                    let cases = named.flat_map(|(name, &value)| {
                        // Merges may see what a file packs apart.
                        let mut names = ClipSpelling::HUGGING_FACE.apart_names(name);
                        if names.is_empty() {
                            names.push(name.clone());
                        }
                        names.into_iter().map(move |name| Case {
                            filter: None,
                            glob: Some(name),
                            regex: None,
                            value: number(value),
                        })
                    });
                    // Tensors without a learned coefficient.
                    let rest = Case {
                        filter: Some("*".to_owned()),
                        glob: None,
                        regex: None,
                        value: number(self.job.start),
                    };
                    Parameter::Cases(cases.chain([rest]).collect())
                }
            };
            of.parameters.set("weight", weight);
            of
        });
        MergeRecipe {
            merge_method: "task_arithmetic".to_owned(),
            base_model: Some(ModelRef::new(&self.job.base)),
            models: models.collect(),
            on_missing: OnMissing::Skip,
            ..MergeRecipe::default()
        }
    }
}
