//! Classes of images, by a linear classifier on an image tower.

use std::sync::Arc;

use merge::Checkpoint;
use ndarray::ArrayView2;

use super::grams::{Batch, images_in_batches};
use super::spec::{TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task, passes};
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::classes::{CLASSES, ClassSet};
use crate::datasets::left_out::Omission;
use crate::metrics::accuracy::argmax;
use crate::metrics::retrieval::Ties;
use crate::metrics::zero_shot::sample;
use crate::models::{Head, Model};
use crate::sample::Unit;
use crate::{Error, LabelFault, Result};

/// The row of the linear probe.
pub const SPEC: TaskSpec = TaskSpec {
    name: "linear_probe",
    aliases: &["image_classification"],
    title: "Linear probe",
    about: "The class of an image by a linear classifier on the image tower",
    kind: Kind::Classes,
    reads_texts: false,
    dataset: "imagenet1k",
    default_split: "val",
    headline: "top1",
    numbers: &[
        number("top1", "Top-1", Unit::Fraction, true),
        number("top5", "Top-5", Unit::Fraction, true),
    ],
    prediction_ending: Some("csv"),
    published_experts: None,
    options: &[TaskOption::Dataset, TaskOption::Ties],
    open: Some(|options, folder| {
        let set = ClassSet::open(folder, options.dataset, options.split)?;
        let set = set.evenly(options.limit.unwrap_or(usize::MAX));
        Ok(Box::new(LinearProbe::new(Arc::new(set), options.ties)))
    }),
};

/// Pictures in a folder for each class.
pub struct LinearProbe {
    set: Arc<ClassSet>,
    ties: Ties,
}

/// The names of the classes of a checkpoint's head for images, where its metadata keep them.
///
/// # Errors
/// [`LabelFault::BadAnswerList`] when the list is damaged.
pub fn classes_of(checkpoint: &Checkpoint) -> Result<Option<Vec<String>>> {
    let list = checkpoint.info().metadata.get(CLASSES);
    let read = list.map(|list| serde_json::from_str(list));
    read.transpose().map_err(|source| {
        Error::from(LabelFault::BadAnswerList {
            key: CLASSES,
            source,
        })
    })
}

impl LinearProbe {
    /// On an opened split.
    #[must_use]
    pub fn new(set: Arc<ClassSet>, ties: Ties) -> Self {
        Self { set, ties }
    }

    /// The model's number of each class of the data: by name where the model keeps names, or else by the
    /// same number.
    fn numbers(&self, n_classes: usize, names: Option<&[String]>) -> Result<Vec<i64>> {
        let own = self.set.classes();
        let path = || self.set.path().to_owned();
        let Some(names) = names else {
            return match own.len() == n_classes {
                true => Ok((0..n_classes as i64).collect()),
                false => Err(LabelFault::OtherClasses {
                    path: path(),
                    n_classes,
                    n_data: own.len(),
                }
                .into()),
            };
        };
        if names.len() != n_classes {
            return Err(LabelFault::AnswerList {
                n_answers: names.len(),
                n_classes,
            }
            .into());
        }
        let number = |class: &String| {
            let found = names.iter().position(|name| name == class);
            found.map(|number| number as i64)
        };
        let numbers = own.iter().map(|class| {
            number(class).ok_or_else(|| {
                Error::from(LabelFault::NoSuchClassName {
                    path: path(),
                    class: class.clone(),
                    n_classes,
                })
            })
        });
        numbers.collect()
    }
}

impl Task for LinearProbe {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let n = self.set.len();
        let n_classes = runner.model().n_classes(Head::ImageClasses)?;
        let numbers = self.numbers(n_classes, runner.classes())?;
        let of_images = (0..n).map(|image| Ok(numbers[self.set.class(image)?]));
        let labels: Vec<i64> = of_images.collect::<Result<_>>()?;
        let logits = runner.cached("class logits", n, || {
            let set = Arc::clone(&self.set);
            passes::of_images(
                runner,
                n,
                move |image| set.picture(image),
                &|images, pass| {
                    let states = runner.model().pooled_image(images, pass)?;
                    runner.model().score(Head::ImageClasses, &states)
                },
            )
        })?;
        let logits = ArrayView2::from_shape((n, n_classes), &logits);
        let logits = logits.map_err(|_| Error::LengthsDiffer {
            what: "logits and images",
            left: n,
            right: n_classes,
        })?;
        let classes: Vec<i64> = (0..n_classes as i64).collect();
        let measured = sample(&logits.t(), &classes, &labels, self.ties)?;
        let counts = [("images", n), ("classes", self.set.classes().len())];
        let said = logits.rows().into_iter().enumerate().map(|(image, row)| {
            let class = argmax(row).unwrap_or_default() as i64;
            Ok((self.set.name(image)?.to_owned(), class))
        });
        Ok(Outcome {
            sample: measured,
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples: Vec::new(),
            predictions: Predictions::Classes(said.collect::<Result<_>>()?),
        })
    }

    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        let images: Vec<usize> = (0..self.set.len()).collect();
        images_in_batches(&images, 1, size)
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        // There are no texts.
        passes::gram_batch(
            runner,
            batch,
            capture,
            |image| self.set.picture(image),
            |_| "",
        )
    }
}
