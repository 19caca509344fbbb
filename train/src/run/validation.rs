//! Measuring on the way.

use std::rc::Rc;

use candle_core::{DType, Device};
use evaluate::metrics::retrieval::Ties;
use evaluate::models::Model;
use evaluate::ranks::Collective;
use evaluate::tasks::{Runner, Task, TaskOptions, TaskSpec};
use evaluate::text::Tokenizer;
use evaluate::writing::Writing;
use merge::Progress;

use crate::recipe::{DataSettings, ValidationSettings};
use crate::{Error, Result};

/// A task on a validation split.
pub struct Validation {
    task: Box<dyn Task>,
    metric: String,
    batch_size: usize,
    /// The names of the classes of the model's head for images, where it tells classes apart.
    classes: Option<Vec<String>>,
}

/// The result of a validation.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The number that weights are chosen by.
    pub chosen: f64,
    /// All numbers, by name.
    pub values: Vec<(String, f64)>,
}

/// How ranks measure together.
#[derive(Clone, Copy)]
pub enum Together<'a> {
    /// Each computes its own batches.
    ByBatches(&'a dyn Collective),
    /// Each holds its own experts, so all compute every batch.
    ByExperts(&'a Rc<dyn Collective>),
}

impl Validation {
    /// The row of the task.
    ///
    /// # Errors
    /// [`Error::BadSetting`] when there is no such task.
    pub fn spec(settings: &ValidationSettings) -> Result<&'static TaskSpec> {
        TaskSpec::find(&settings.task).map_err(|error| Error::BadSetting {
            key: "validation.task".into(),
            reason: error.to_string(),
        })
    }

    /// Opens the split; `classes` are the names of the classes of images that are learned.
    ///
    /// # Errors
    /// When there is no such task, data set or split, or a file is damaged.
    pub fn open(
        settings: &ValidationSettings,
        data: &DataSettings,
        classes: Option<Vec<String>>,
    ) -> Result<Self> {
        let spec = Self::spec(settings)?;
        let options = TaskOptions {
            dataset: &settings.dataset,
            split: &settings.split,
            limit: settings.limit,
            without_repeats: false,
            with_examples: false,
            ties: Ties::default(),
            writing: Writing::default(),
            candidates: None,
            rerank: None,
            allow_other_answers: false,
        };
        let task = spec.open(&options, &data.folder)?;
        let usual = spec.headline;
        Ok(Self {
            task,
            metric: settings.metric.clone().unwrap_or_else(|| usual.into()),
            batch_size: settings.batch_size,
            classes,
        })
    }

    /// Measures a model; all ranks get the same numbers.
    ///
    /// # Errors
    /// When the model lacks the task's head, a picture cannot be read, the device fails, or the
    /// user stops it.
    pub fn measure(
        &self,
        model: &dyn Model,
        tokenizer: Option<&Tokenizer>,
        device: &Device,
        dtype: DType,
        progress: &dyn Progress,
        together: Together<'_>,
    ) -> Result<Measured> {
        let runner = Runner::new(model, tokenizer, device, dtype, self.batch_size, progress)?;
        let runner = match together {
            Together::ByBatches(ranks) => runner.shared(ranks),
            Together::ByExperts(ranks) => runner.sharing_experts(ranks),
        };
        let runner = runner.with_classes(self.classes.clone());
        let sample = self.task.run(&runner)?.sample;
        let value = |quantity| Some((quantity, sample.value(quantity)?));
        let values: Vec<(String, f64)> = (sample.quantities.iter())
            .filter_map(value)
            .map(|(quantity, value)| (quantity.name.clone(), value))
            .collect();
        let chosen = values.iter().find(|(name, _)| *name == self.metric);
        match chosen {
            Some(&(_, chosen)) => Ok(Measured { chosen, values }),
            None => Err(Error::BadSetting {
                key: "validation.metric".into(),
                reason: format!(
                    "`{}` is none of {}",
                    self.metric,
                    values
                        .iter()
                        .map(|(name, _)| name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }),
        }
    }
}
