//! VQA: an answer in words against those of ten people.
//!
//! Reference: <https://visualqa.org/evaluation.html> and its program at
//! <https://github.com/GT-Vision-Lab/VQA>.

use std::collections::{BTreeMap, HashSet};

use ndarray::ArrayView2;

use crate::metrics::accuracy::argmax;
use crate::metrics::answers::{clean, normalize, soft_score_of_count};
use crate::sample::{Ratio, Sample};
use crate::{Error, Result};

/// The official accuracy of an answer: how many of the others agree with it, divided by three, at
/// most 1, averaged over leaving out each person's answer in turn. 0 without answers.
///
/// Line breaks, tabs and outer spaces never count. Beyond that, answers are normalized on both
/// sides only where the people's answers differ, as in the official program: `Yes` against ten
/// times `yes` scores 0.
///
/// # Example
/// ```
/// let people = ["red", "red", "Red.", "dark red", "blue", "blue", "blue", "blue", "blue", "blue"];
/// // Three say red: leaving out one of them leaves 2/3, leaving out another leaves 1.
/// let accuracy = evaluate::metrics::vqa::accuracy("the red", &people);
/// assert!((accuracy - (3.0 * 2.0 / 3.0 + 7.0) / 10.0).abs() < 1e-15);
/// ```
#[must_use]
pub fn accuracy(answer: &str, people: &[impl AsRef<str>]) -> f64 {
    if people.is_empty() {
        return 0.0;
    }
    let people: Vec<String> = people.iter().map(|said| clean(said.as_ref())).collect();
    let answer = clean(answer);
    let n_distinct = people.iter().collect::<HashSet<_>>().len();
    let n_agree = if n_distinct > 1 {
        let answer = normalize(&answer);
        people.iter().filter(|p| normalize(p) == answer).count()
    } else {
        people.iter().filter(|&p| *p == answer).count()
    };
    let share = |n_others: usize| (n_others as f64 / 3.0).min(1.0);
    let n_differ = people.len() - n_agree;
    let sum = n_agree as f64 * share(n_agree.saturating_sub(1)) + n_differ as f64 * share(n_agree);
    sum / people.len() as f64
}

/// The published programs' soft score of an answer: by how many people gave exactly this string,
/// nothing normalized ([`soft_score_of_count`]).
#[must_use]
pub fn soft_score(answer: &str, people: &[impl AsRef<str>]) -> f64 {
    soft_score_of_count(people.iter().filter(|said| said.as_ref() == answer).count())
}

/// The published programs' VQA score of a batch: the mean over questions of the target (soft score)
/// of the answer with the largest logit; of several, the first. Both `(questions, answers)`.
/// `None` without questions or answers.
///
/// # Errors
/// [`Error::LengthsDiffer`].
pub fn score_of_logits(
    logits: ArrayView2<'_, f32>,
    targets: ArrayView2<'_, f32>,
) -> Result<Option<f64>> {
    for axis in 0..2 {
        if logits.shape()[axis] != targets.shape()[axis] {
            return Err(Error::LengthsDiffer {
                what: "logits and targets",
                left: logits.shape()[axis],
                right: targets.shape()[axis],
            });
        }
    }
    let rows = logits.rows().into_iter().zip(targets.rows());
    let picked: Option<Vec<f64>> = rows
        .map(|(logits, targets)| argmax(logits).map(|answer| f64::from(targets[answer])))
        .collect();
    Ok(picked
        .filter(|scores| !scores.is_empty())
        .map(|scores| scores.iter().sum::<f64>() / scores.len() as f64))
}

/// A question whose answer has been judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged<'a> {
    /// The image it is about.
    pub image_id: i64,
    /// Kind of its answer: `yes/no`, `number`, `other`.
    pub answer_type: &'a str,
    /// Its first words, e.g. `how many`.
    pub question_type: &'a str,
    /// [`accuracy`] of the answer.
    pub accuracy: f64,
    /// [`soft_score`] of the answer.
    pub soft_score: f64,
}

/// Accuracy overall, per answer type and per question type, and the soft score. Units are images.
#[must_use]
pub fn sample<'a>(questions: &[Judged<'a>]) -> Sample {
    let mut ordered: Vec<&Judged<'a>> = questions.iter().collect();
    ordered.sort_by_key(|question| question.image_id);
    let mut units = Vec::with_capacity(ordered.len());
    let mut n_units = 0;
    for (position, question) in ordered.iter().enumerate() {
        if position == 0 || ordered[position - 1].image_id != question.image_id {
            n_units += 1;
        }
        units.push(n_units - 1);
    }
    let cases = || units.iter().copied().zip(&ordered);
    let mut sample = Sample::new(n_units);
    let all = cases().map(|(unit, question)| (unit, question.accuracy));
    sample.report("accuracy", Ratio::of_cases(all));
    let soft = cases().map(|(unit, question)| (unit, question.soft_score));
    sample.report("soft_score", Ratio::of_cases(soft));
    type Kind<'a> = fn(&Judged<'a>) -> &'a str;
    let kinds: [(&str, Kind<'a>); 2] = [
        ("answer_type", |question| question.answer_type),
        ("question_type", |question| question.question_type),
    ];
    for (prefix, kind) in kinds {
        let mut by_kind: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
        for (unit, question) in cases() {
            let of_kind = by_kind.entry(kind(question)).or_default();
            of_kind.push((unit, question.accuracy));
        }
        for (name, of_kind) in by_kind {
            sample.report(format!("{prefix}/{name}"), Ratio::of_cases(of_kind));
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_equal_answers_are_compared_as_they_stand() {
        assert_eq!(accuracy("Yes", &["yes"; 10]), 0.0);
        assert_eq!(accuracy(" yes\n", &["yes"; 10]), 1.0);
        let mut people = ["yes"; 10];
        people[0] = "no";
        assert_eq!(accuracy("Yes", &people), 1.0);
    }

    #[test]
    fn the_soft_score_normalizes_nothing() {
        let people = ["two", "two", "2"];
        assert_eq!(soft_score("two", &people), 0.6);
        assert_eq!(soft_score("2", &people), 0.3);
        assert_eq!(soft_score("Two", &people), 0.0);
    }
}
