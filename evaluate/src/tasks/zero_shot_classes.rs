//! Zero-shot classification of pictures in a folder for each class: the class whose texts, by every template, are nearest
//! to an image.

use std::sync::Arc;

use super::grams::{Batch, images_in_batches, texts_in_batches};
use super::scores::Similarities;
use super::spec::{TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task, passes};
use crate::Result;
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::class_texts::ClassTexts;
use crate::datasets::classes::ClassSet;
use crate::datasets::left_out::Omission;
use crate::metrics::accuracy::argmax;
use crate::metrics::calibration::calibration_error;
use crate::metrics::retrieval::{ScoreMatrix, Ties};
use crate::metrics::zero_shot::{of_templates, per_class, sample};
use crate::models::Model;
use crate::sample::Unit;

/// The row of zero-shot classification by class folders.
pub const SPEC: TaskSpec = TaskSpec {
    name: "zero_shot_classes",
    aliases: &[],
    title: "Zero-shot classification, folders",
    about: "The class of an image by texts of the class names, in folders of classes",
    kind: Kind::Classes,
    reads_texts: true,
    dataset: "imagenet1k",
    default_split: "val",
    headline: "top1",
    numbers: &[
        number("top1", "Top-1", Unit::Fraction, true),
        number("top5", "Top-5", Unit::Fraction, true),
        number("per_class", "Per class", Unit::Fraction, false),
        number("calibration_error", "Calibration", Unit::Fraction, false),
    ],
    prediction_ending: Some("csv"),
    published_experts: None,
    options: &[TaskOption::Dataset, TaskOption::Ties],
    open: Some(|options, folder| {
        let set = ClassSet::open(folder, options.dataset, options.split)?;
        let texts = set.texts(&folder.join(options.dataset))?;
        let set = set.evenly(options.limit.unwrap_or(usize::MAX));
        Ok(Box::new(ZeroShotClasses {
            set: Arc::new(set),
            texts,
            ties: options.ties,
        }))
    }),
};

/// The factor of cosines before their softmax: CLIP's published one, whatever the checkpoint has learned.
const SCALE: f32 = 100.0;

/// Rows of a classifier of images on features of length one, `classes × width`, and their width: 100 times what stands for
/// each class, so that it gives the logits of zero-shot classification.
///
/// # Errors
/// [`ModelFault::Incapable`](crate::ModelFault::Incapable) when the model does not encode texts apart, and when a text
/// cannot be read or the device fails.
pub fn classifier_rows(runner: &Runner<'_>, texts: &ClassTexts) -> Result<(Vec<f32>, usize)> {
    let features = features_of(runner, texts)?;
    let (classes, width) = of_classes(&features, texts);
    Ok((
        classes.into_iter().map(|value| SCALE * value).collect(),
        width,
    ))
}

/// The features of all texts.
fn features_of(runner: &Runner<'_>, texts: &ClassTexts) -> Result<Vec<f32>> {
    passes::of_texts(runner, texts.prompts().iter().map(String::as_str))
}

/// The vector of each class, from the features of all texts, and the width of a feature.
fn of_classes(features: &[f32], texts: &ClassTexts) -> (Vec<f32>, usize) {
    let width = features.len() / texts.prompts().len().max(1);
    (of_templates(features, texts.n_templates(), width), width)
}

/// Pictures in a folder for each class, and the texts of the classes.
struct ZeroShotClasses {
    set: Arc<ClassSet>,
    texts: ClassTexts,
    ties: Ties,
}

impl Task for ZeroShotClasses {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let (n, n_classes) = (self.set.len(), self.set.classes().len());
        let n_texts = self.texts.prompts().len();
        let texts = runner.cached("texts", n_texts, || features_of(runner, &self.texts))?;
        let (classes, width) = of_classes(&texts, &self.texts);
        let images = runner.cached("images", n, || {
            let set = Arc::clone(&self.set);
            passes::features_of_images(runner, n, move |image| set.picture(image))
        })?;
        let scores = Similarities::new(classes, images, width);
        let numbers: Vec<i64> = (0..n_classes as i64).collect();
        let labels = (0..n).map(|image| Ok(self.set.class(image)? as i64));
        let labels: Vec<i64> = labels.collect::<Result<_>>()?;
        let mut measured = sample(&scores, &numbers, &labels, self.ties)?;
        let rows = by_image(&scores, n_classes, n)?;
        let of_images = rows.chunks_exact(n_classes);
        let nearest: Vec<usize> = of_images.filter_map(|row| argmax(row.into())).collect();
        per_class(&mut measured, &nearest, &labels, n_classes);
        calibration_error(&mut measured, &rows, &labels, SCALE);
        let said = nearest.iter().enumerate();
        let said = said.map(|(image, class)| Ok((self.set.name(image)?.to_owned(), *class as i64)));
        let counts = [
            ("images", n),
            ("classes", n_classes),
            ("templates", self.texts.n_templates()),
        ];
        Ok(Outcome {
            sample: measured,
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples: Vec::new(),
            predictions: Predictions::Classes(said.collect::<Result<_>>()?),
        })
    }

    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        let images: Vec<usize> = (0..self.set.len()).collect();
        let mut batches = images_in_batches(&images, 1, size);
        batches.extend(texts_in_batches(self.texts.prompts().len(), size));
        batches
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let prompts = self.texts.prompts();
        passes::gram_batch(
            runner,
            batch,
            capture,
            |image| self.set.picture(image),
            |text: usize| prompts[text].as_str(),
        )
    }
}

/// Cosines image by image, a number for each class.
fn by_image(scores: &Similarities, n_classes: usize, n: usize) -> Result<Vec<f32>> {
    let mut rows = vec![0.0; n_classes * n];
    let mut row = vec![0.0; n];
    for class in 0..n_classes {
        scores.read(class, 0, &mut row)?;
        for (image, score) in row.iter().enumerate() {
            rows[image * n_classes + class] = *score;
        }
    }
    Ok(rows)
}
