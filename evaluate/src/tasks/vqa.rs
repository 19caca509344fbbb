//! Visual question answering: image and question together, to one of a list of answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::grams::Batch;
use super::runner::by_length;
use super::{Outcome, Predictions, Runner, Task};
use crate::capture::Capture;
use crate::datasets::vqa::VqaSet;
use crate::nn::Pass;
use crate::predictions::vqa::Answer;
use crate::sample::Ratio;
use crate::text::Encoded;
use crate::{Error, Result, Sample};

/// What published code answers where the list of answers has no word for a class.
const UNKNOWN: &str = "unknown";

/// Question answering on a split.
pub struct Vqa {
    set: Arc<VqaSet>,
    answers: BTreeMap<i64, String>,
}

impl Vqa {
    /// On an opened split; `answers` are the words of the classes.
    #[must_use]
    pub fn new(set: Arc<VqaSet>, answers: BTreeMap<i64, String>) -> Self {
        Self { set, answers }
    }

    /// The class with the largest logit of every question; of several the first.
    fn classes(&self, runner: &Runner<'_>) -> Result<Vec<i64>> {
        let questions = self.set.questions();
        let encoded = runner.encode(questions.iter().map(|question| question.text.as_str()))?;
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
        let mut own = Vec::new();
        for (pixels, batch) in pixels.zip(&batches) {
            let pixels = runner.pixels(pixels?, batch.len())?;
            let texts: Vec<&Encoded> = batch.iter().map(|&question| &encoded[question]).collect();
            let (ids, mask) = runner.texts(&texts)?;
            let logits = runner.model().answer(&ids, &mask, &pixels, &Pass::new())?;
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
    fn name(&self) -> &'static str {
        "vqa"
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let questions = self.set.questions();
        let n_classes = runner.model().heads().vqa()?.n_classes();
        let known = questions
            .iter()
            .flat_map(|question| &question.answer_labels);
        if let Some(&target) = known.max().filter(|&&label| label >= n_classes as i64) {
            return Err(Error::OtherAnswers {
                label: target,
                n_classes,
            });
        }
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
                answer: self
                    .answers
                    .get(class)
                    .map_or(UNKNOWN, String::as_str)
                    .to_owned(),
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

    fn gram_batches(&self, size: usize) -> Vec<Batch> {
        super::grams::texts_in_batches(self.set.questions().len(), size)
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let (Batch::Texts(examples) | Batch::Images { examples, .. }) = batch;
        let questions: Vec<_> = examples
            .iter()
            .map(|&index| &self.set.questions()[index])
            .collect();
        let pixels =
            runner.picture_batch(&questions, |question| self.set.picture(question.image))?;
        let encoded = runner.encode(questions.iter().map(|question| question.text.as_str()))?;
        let (ids, mask) = capture.texts(runner, &encoded)?;
        let tap = capture.times(1);
        runner
            .model()
            .joint(&ids, &mask, &pixels, None, 0, &Pass::tapped(&tap))?;
        Ok(())
    }
}
