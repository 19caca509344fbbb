//! Visual question answering: image and question together, to one of a list of answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use merge::layouts;

use super::grams::{Batch, texts_in_batches};
use super::runner::by_length;
use super::spec::{TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task};
use crate::batch::Pair;
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::left_out::Omission;
use crate::datasets::vqa::{ANSWERS, VqaSet};
use crate::models::{Head, Model};
use crate::nn::Pass;
use crate::predictions::vqa::Answer;
use crate::sample::{Ratio, Unit};
use crate::text::{Encoded, TextKind};
use crate::{Error, LabelFault, Result, Sample};

/// The answer of published code where the list of answers has no word for a class.
const UNKNOWN: &str = "unknown";

/// The experts that a merge takes for it, and its names there.
const EXPERTS: layouts::Task = layouts::Task::Vqa;

/// The row of VQA v2. `vqa_score` is what a model gets of the soft scores in the data set's files;
/// `accuracy` and `soft_score` judge answers in words by the official annotations.
pub const SPEC: TaskSpec = TaskSpec {
    name: EXPERTS.name(),
    aliases: EXPERTS.aliases(),
    title: "VQA",
    about: EXPERTS.about(),
    kind: Kind::Questions,
    reads_texts: true,
    dataset: "vqa",
    default_split: "rest_val",
    headline: "vqa_score",
    numbers: &[
        number("vqa_score", "VQA score", Unit::Fraction, true),
        number("accuracy", "Accuracy", Unit::Fraction, true),
        number("soft_score", "Soft score", Unit::Fraction, false),
    ],
    prediction_ending: Some("json"),
    published_experts: Some(EXPERTS),
    options: &[TaskOption::OtherAnswers],
    open: Some(|options, folder| {
        let set = VqaSet::open(folder, options.split)?;
        let set = set.first(options.limit.unwrap_or(usize::MAX));
        set.check_pictures()?;
        let answers = set.label_answers(folder)?;
        let task = Vqa::new(Arc::new(set), answers);
        Ok(Box::new(match options.allow_other_answers {
            true => task.allowing_other_answers(),
            false => task,
        }))
    }),
};

/// The answers that the classes of a checkpoint's VQA head stand for, where its metadata keep them.
///
/// # Errors
/// [`LabelFault::BadAnswerList`] when the list is damaged.
pub fn answers_of(checkpoint: &merge::Checkpoint) -> Result<Option<Vec<String>>> {
    let info = checkpoint.info();
    let list = info.metadata.get(ANSWERS);
    let read = list.map(|list| serde_json::from_str(list));
    read.transpose().map_err(|source| {
        Error::from(LabelFault::BadAnswerList {
            key: ANSWERS,
            source,
        })
    })
}

/// The word that a class stands for, or `unknown`, as published code answers for a class without one.
#[must_use]
pub fn word_of(class: i64, answers: &BTreeMap<i64, String>) -> &str {
    answers.get(&class).map_or(UNKNOWN, String::as_str)
}

/// Question answering on a split.
pub struct Vqa {
    set: Arc<VqaSet>,
    answers: BTreeMap<i64, String>,
    allows_other_answers: bool,
}

impl Vqa {
    /// On an opened split; `answers` are the words of the classes.
    #[must_use]
    pub fn new(set: Arc<VqaSet>, answers: BTreeMap<i64, String>) -> Self {
        Self {
            set,
            answers,
            allows_other_answers: false,
        }
    }

    /// Measures heads that have other classes than the data name, too.
    #[must_use]
    pub fn allowing_other_answers(self) -> Self {
        Self {
            allows_other_answers: true,
            ..self
        }
    }

    /// Checks that the classes of a head are those of the data: by the model's list of answers where
    /// it keeps one, else by their number.
    fn check_classes(&self, n_classes: usize, list: Option<&[String]>) -> Result<()> {
        let labels = self.set.questions().iter().flat_map(|q| &q.answer_labels);
        let largest = self.answers.keys().chain(labels.clone()).max();
        let n_data = largest.map_or(0, |&label| label as usize + 1);
        let other = Error::from(LabelFault::OtherAnswers { n_classes, n_data });
        if labels.max().is_some_and(|&label| label >= n_classes as i64) {
            return Err(other);
        }
        let Some(list) = list else {
            return match n_data == n_classes || self.allows_other_answers {
                true => Ok(()),
                false => Err(other),
            };
        };
        if list.len() != n_classes {
            return Err(LabelFault::AnswerList {
                n_answers: list.len(),
                n_classes,
            }
            .into());
        }
        for (&label, data) in &self.answers {
            let model = usize::try_from(label)
                .ok()
                .and_then(|label| list.get(label));
            if model != Some(data) && !self.allows_other_answers {
                return Err(LabelFault::AnswersDiffer {
                    label,
                    model: model.cloned().unwrap_or_default(),
                    data: data.clone(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// The word of a class: the model's own where it keeps a list.
    fn word<'a>(&'a self, class: i64, list: Option<&'a [String]>) -> &'a str {
        let own = list.and_then(|list| list.get(usize::try_from(class).ok()?));
        own.map_or_else(|| word_of(class, &self.answers), String::as_str)
    }

    /// The class with the largest logit of every question; of several the first.
    fn classes(&self, runner: &Runner<'_>) -> Result<Vec<i64>> {
        let questions = self.set.questions();
        let encoded = runner.encode(
            TextKind::Question,
            questions.iter().map(|question| question.text.as_str()),
        )?;
        let all = by_length(&encoded, runner.batch_size());
        let batches = runner.own(all.clone());
        let images = batches.iter().map(|batch| {
            batch
                .iter()
                .map(|&question| questions[question].image)
                .collect()
        });
        let set = Arc::clone(&self.set);
        let pixels = runner.pictures(images.collect(), move |&image| set.picture(image));
        let model = runner.model().fusion()?;
        let mut own = Vec::new();
        for (pixels, batch) in pixels.zip(&batches) {
            let images = runner.pixels(pixels?, batch.len())?;
            let texts: Vec<&Encoded> = batch.iter().map(|&question| &encoded[question]).collect();
            let texts = runner.texts(&texts)?;
            let pair = Pair::new(&texts, &images);
            let logits = model.answer(&pair, &runner.pass())?;
            let n_classes = logits.dim(1)?;
            let logits = runner.rows(&logits)?;
            for (&question, logits) in batch.iter().zip(logits.chunks_exact(n_classes)) {
                own.push(largest(logits, question)?);
            }
            runner.advance(batch.len())?;
        }
        let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
        let found = runner.gathered(own, &sizes)?;
        let mut classes = vec![0; questions.len()];
        for (&question, class) in all.iter().flatten().zip(found.into_iter().flatten()) {
            classes[question] = class;
        }
        Ok(classes)
    }
}

/// The index of the largest; of several the first.
pub(super) fn largest(logits: &[f32], example: usize) -> Result<i64> {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(Error::LogitNotANumber { example });
        }
        if *logit > logits[best] {
            best = index;
        }
    }
    Ok(best as i64)
}

impl Task for Vqa {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let questions = self.set.questions();
        let n_classes = runner.model().n_classes(Head::Vqa)?;
        self.check_classes(n_classes, runner.answers())?;
        runner
            .progress()
            .start_items("questions", questions.len() as u64);
        let classes = self.classes(runner);
        runner.progress().finish();
        let classes = classes?;
        let mut sample = Sample::new(self.set.n_images());
        let judged = questions.iter().zip(&classes).map(|(question, class)| {
            let labels = question.answer_labels.iter().zip(&question.answer_scores);
            let score = labels
                .filter(|(label, _)| *label == class)
                .map(|(_, score)| *score);
            (question.image, score.sum::<f64>())
        });
        let has_answers = questions
            .iter()
            .any(|question| !question.answer_labels.is_empty());
        if has_answers {
            let mut judged: Vec<(usize, f64)> = judged.collect();
            judged.sort_by_key(|(image, _)| *image);
            sample.report("vqa_score", Ratio::of_cases(judged));
        }
        let answers = questions
            .iter()
            .zip(&classes)
            .map(|(question, class)| Answer {
                question_id: question.question_id,
                answer: self.word(*class, runner.answers()).to_owned(),
            });
        let counts = [
            ("images", self.set.n_images()),
            ("questions", questions.len()),
        ];
        Ok(Outcome {
            sample,
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples: Vec::new(),
            predictions: Predictions::Answers(answers.collect()),
        })
    }

    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        texts_in_batches(self.set.questions().len(), size)
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let (Batch::Texts(examples) | Batch::Images { examples, .. }) = batch;
        let questions: Vec<_> = examples
            .iter()
            .map(|&index| &self.set.questions()[index])
            .collect();
        let images =
            runner.picture_batch(&questions, |question| self.set.picture(question.image))?;
        let encoded = runner.encode(
            TextKind::Question,
            questions.iter().map(|question| question.text.as_str()),
        )?;
        let texts = capture.texts(runner, &encoded)?;
        let tap = capture.times(1);
        let pair = Pair::new(&texts, &images);
        runner.model().fusion()?.fuse(&pair, &Pass::tapped(&tap))?;
        Ok(())
    }
}
