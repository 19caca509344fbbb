//! Zero-shot classification: the class whose text is nearest to an image, by the rule that ZeroVL's
//! program has for a data set called `imagenet`.

use std::sync::Arc;

use super::grams::{Batch, images_in_batches, texts_in_batches};
use super::scores::Similarities;
use super::spec::{TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task, passes};
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::annotations::{Annotations, Half};
use crate::datasets::left_out::Omission;
use crate::metrics::retrieval::{ScoreMatrix, Ties};
use crate::metrics::zero_shot::{rows_by_id, sample};
use crate::models::Model;
use crate::sample::Unit;
use crate::{DataFault, Error, Result};

/// The row of zero-shot classification.
pub const SPEC: TaskSpec = TaskSpec {
    name: "zero_shot",
    aliases: &[],
    title: "Zero-shot classification",
    about: "The class of an image by texts of the classes",
    kind: Kind::Captions,
    reads_texts: true,
    dataset: "imagenet",
    default_split: "valid",
    headline: "top1",
    numbers: &[
        number("top1", "Top-1", Unit::Fraction, true),
        number("top5", "Top-5", Unit::Fraction, true),
    ],
    prediction_ending: Some("csv"),
    published_experts: None,
    options: &[TaskOption::Dataset, TaskOption::Ties],
    open: Some(|options, folder| {
        let half = Half::of(options.split).ok_or_else(|| {
            Error::Data(DataFault::UnknownSplit {
                dataset: SPEC.dataset,
                name: options.split.into(),
                known: "train, valid".into(),
            })
        })?;
        let rows = Annotations::open(folder, options.dataset, half)?;
        let rows = rows.first(options.limit.unwrap_or(usize::MAX));
        rows.check_pictures()?;
        Ok(Box::new(ZeroShot::new(Arc::new(rows), options.ties)?))
    }),
};

/// Images with a class each, and a text per class: rows of a CSV table whose `caption_id` is the class. Of
/// the texts of a class the last row's counts; there are no templates, and nothing is averaged.
pub struct ZeroShot {
    rows: Arc<Annotations>,
    /// The classes, rising, and the text of each.
    classes: Vec<i64>,
    texts: Vec<String>,
    ties: Ties,
}

impl ZeroShot {
    /// On an opened table.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn new(rows: Arc<Annotations>, ties: Ties) -> Result<Self> {
        let by_class = rows_by_id(rows.caption_ids());
        let mut texts = Vec::with_capacity(by_class.len());
        for (_, of_class) in &by_class {
            let last = of_class.last().copied().unwrap_or_default();
            texts.push(rows.annotation(last)?.caption);
        }
        Ok(Self {
            rows,
            classes: by_class.into_iter().map(|(class, _)| class).collect(),
            texts,
            ties,
        })
    }
}

impl Task for ZeroShot {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        Ok(self.rows.left_out())
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let n = self.rows.len();
        let texts = runner.cached("texts", self.texts.len(), || {
            passes::of_texts(runner, self.texts.iter().map(String::as_str))
        })?;
        let images = runner.cached("images", n, || {
            let rows = Arc::clone(&self.rows);
            passes::features_of_images(runner, n, move |row| rows.picture(row))
        })?;
        let width = images.len() / n.max(1);
        let scores = Similarities::new(texts, images, width);
        let labels = self.rows.caption_ids();
        let measured = sample(&scores, &self.classes, labels, self.ties)?;
        let counts = [("images", n), ("classes", self.classes.len())];
        Ok(Outcome {
            sample: measured,
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples: Vec::new(),
            predictions: Predictions::Classes(self.nearest(&scores)?),
        })
    }

    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        let images: Vec<usize> = (0..self.rows.len()).collect();
        let mut batches = images_in_batches(&images, 1, size);
        batches.extend(texts_in_batches(self.texts.len(), size));
        batches
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let picture = |row| self.rows.picture(row);
        let text = |text: usize| self.texts[text].as_str();
        passes::gram_batch(runner, batch, capture, picture, text)
    }
}

impl ZeroShot {
    /// The nearest class of every image, by the name of its picture; of several the first.
    fn nearest(&self, scores: &Similarities) -> Result<Vec<(String, i64)>> {
        let n = self.rows.len();
        let mut best: Vec<(f32, usize)> = vec![(f32::NEG_INFINITY, 0); n];
        let mut row = vec![0.0; n];
        for class in 0..self.classes.len() {
            scores.read(class, 0, &mut row)?;
            for (best, &score) in best.iter_mut().zip(&row) {
                if score > best.0 {
                    *best = (score, class);
                }
            }
        }
        let named = (0..n).zip(best).map(|(image, (_, class))| {
            let name = self.rows.annotation(image)?.image;
            Ok((name, self.classes[class]))
        });
        named.collect()
    }
}
