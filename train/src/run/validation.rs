//! Measuring on the way.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::{VqaSet, label_answers};
use evaluate::metrics::retrieval::Ties;
use evaluate::models::Multiway;
use evaluate::tasks::nlvr2::Nlvr2;
use evaluate::tasks::retrieval::Retrieval;
use evaluate::tasks::vqa::Vqa;
use evaluate::tasks::{Runner, Task};
use evaluate::text::Tokenizer;
use merge::Progress;

use crate::recipe::{DataSettings, ValidationSettings};
use crate::{Error, Result};

/// A task on a validation split.
pub struct Validation {
    task: Box<dyn Task>,
    metric: String,
    batch_size: usize,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The number that weights are chosen by.
    pub chosen: f64,
    /// All numbers, by name.
    pub values: Vec<(String, f64)>,
}

impl Validation {
    /// Opens the split.
    ///
    /// # Errors
    /// When there is no such task, data set or split, or a file is damaged.
    pub fn open(settings: &ValidationSettings, data: &DataSettings) -> Result<Self> {
        let (folder, split) = (data.folder.as_path(), settings.split.as_str());
        let limit = settings.limit.unwrap_or(usize::MAX);
        let (task, usual): (Box<dyn Task>, &str) = match settings.task.as_str() {
            "retrieval" => {
                let set = CaptionSet::open(folder, &settings.dataset, split)?.first(limit);
                let task = Retrieval::new(Arc::new(set), Ties::default());
                (Box::new(task.without_examples()), "rsum")
            }
            "vqa" => {
                let set = VqaSet::open(folder, split)?.first(limit);
                let task = Vqa::new(Arc::new(set), label_answers(folder)?);
                (Box::new(task), "vqa_score")
            }
            "nlvr2" => {
                let set = Nlvr2Set::open(folder, split)?.first(limit);
                (Box::new(Nlvr2::new(Arc::new(set))), "accuracy")
            }
            other => {
                return Err(Error::BadSetting {
                    key: "validation.task".into(),
                    reason: format!("`{other}` is none of retrieval, vqa and nlvr2"),
                });
            }
        };
        Ok(Self {
            task,
            metric: settings.metric.clone().unwrap_or_else(|| usual.into()),
            batch_size: settings.batch_size,
        })
    }

    /// Measures a model.
    ///
    /// # Errors
    /// When the model lacks the task's head, a picture cannot be read, the device fails, or the
    /// user stops it.
    pub fn measure(
        &self,
        model: &Multiway,
        tokenizer: &Tokenizer,
        device: &Device,
        dtype: DType,
        progress: &dyn Progress,
    ) -> Result<Measured> {
        let runner = Runner::new(model, tokenizer, device, dtype, self.batch_size, progress)?;
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
