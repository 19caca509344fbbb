//! VQA: the official question, annotation and result files.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::file;
use crate::metrics::vqa::{Judged, accuracy, soft_score};
use crate::{Error, JudgedFault, Result};

/// The name of an id in files of predictions, other than in official files: hints differ.
const ANSWERED: &str = "the answer to question";
const ASKED: &str = "question";

/// An answer of a model, as in a result file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Answer {
    /// The question.
    pub question_id: i64,
    /// The answer in words.
    pub answer: String,
}

/// A question with the answers of people, as in an annotation file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Annotation {
    /// The question.
    pub question_id: i64,
    /// The image it is about.
    pub image_id: i64,
    /// Its first words, e.g. `how many`.
    pub question_type: String,
    /// Kind of its answer: `yes/no`, `number`, `other`.
    pub answer_type: String,
    /// The answers, usually ten.
    #[serde(deserialize_with = "words_of_people")]
    pub answers: Vec<String>,
}

/// Keeps the words of `[{"answer": "yes", ...}, ...]`.
fn words_of_people<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    struct Said {
        answer: String,
    }
    let people = Vec::<Said>::deserialize(from)?;
    Ok(people.into_iter().map(|said| said.answer).collect())
}

#[derive(Deserialize)]
struct AnnotationFile {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct QuestionFile {
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question_id: i64,
    image_id: i64,
}

/// Reads an annotation file, in file order.
///
/// # Errors
/// [`Error::Json`] with line and column, [`Error::Empty`], [`Error::DuplicateId`],
/// [`JudgedFault::NoAnswers`], and what opening and reading the file may return.
pub fn read_annotations(path: &Path) -> Result<Vec<Annotation>> {
    let file: AnnotationFile = file::json(path, "a VQA annotation file")?;
    let annotations = file.annotations;
    if annotations.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "annotations",
        });
    }
    index(path, ASKED, annotations.iter().map(|a| a.question_id))?;
    if let Some(mute) = annotations.iter().find(|a| a.answers.is_empty()) {
        return Err(JudgedFault::NoAnswers {
            path: path.into(),
            question: mute.question_id,
        }
        .into());
    }
    Ok(annotations)
}

/// Reads a result file: a list of objects with `question_id` and `answer`, in file order.
///
/// # Errors
/// [`Error::Json`] with line and column, and what opening and reading the file may return.
pub fn read_results(path: &Path) -> Result<Vec<Answer>> {
    file::json(path, "a VQA result file")
}

/// The annotations of the questions that have an answer, in their order: those of a part of a split.
///
/// # Errors
/// [`Error::Empty`] when no question has one; [`Error::DuplicateId`].
pub fn answered(
    path: &Path,
    results: &[Answer],
    annotations: &[Annotation],
) -> Result<Vec<Annotation>> {
    let answered = index(
        path,
        ANSWERED,
        results.iter().map(|answer| answer.question_id),
    )?;
    let kept = annotations
        .iter()
        .filter(|a| answered.contains_key(&a.question_id));
    let kept: Vec<Annotation> = kept.cloned().collect();
    match kept.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "answers to these questions",
        }),
        false => Ok(kept),
    }
}

/// Checks that a question file holds the questions of the annotations, about the same images. With
/// `is_partial` either file may hold more than the other.
///
/// # Errors
/// [`Error::UnknownId`], [`Error::DuplicateId`], [`JudgedFault::ImageDiffers`], [`Error::Json`], and what
/// opening and reading the file may return.
pub fn check_questions(
    path: &Path,
    annotations: &[Annotation],
    annotation_path: &Path,
    is_partial: bool,
) -> Result<()> {
    let file: QuestionFile = file::json(path, "a VQA question file")?;
    let asked = index(path, ASKED, file.questions.iter().map(|q| q.question_id))?;
    let unknown = |path: &Path, other: &Path, id: i64| Error::UnknownId {
        path: path.into(),
        what: "question",
        id: id.to_string(),
        other: other.into(),
    };
    for annotation in annotations {
        let id = annotation.question_id;
        let position = match asked.get(&id) {
            Some(&position) => position,
            None if is_partial => continue,
            None => return Err(unknown(annotation_path, path, id)),
        };
        let found = file.questions[position].image_id;
        if found != annotation.image_id {
            return Err(JudgedFault::ImageDiffers {
                path: path.into(),
                question: id,
                found,
                expected: annotation.image_id,
                other: annotation_path.into(),
            }
            .into());
        }
    }
    if asked.len() > annotations.len() && !is_partial {
        let annotated = index(
            annotation_path,
            ASKED,
            annotations.iter().map(|a| a.question_id),
        )?;
        let left_over = file.questions.iter().map(|q| q.question_id);
        for id in left_over {
            if !annotated.contains_key(&id) {
                return Err(unknown(path, annotation_path, id));
            }
        }
    }
    Ok(())
}

/// Judges every answer, in the order of the annotations. As in the official program every question
/// must be answered, and nothing else.
///
/// # Errors
/// [`Error::DuplicateId`], [`Error::UnknownId`], [`JudgedFault::MissingPredictions`].
pub fn judge<'a>(
    path: &Path,
    results: &[Answer],
    annotations: &'a [Annotation],
    annotation_path: &Path,
) -> Result<Vec<Judged<'a>>> {
    let answered = index(
        path,
        ANSWERED,
        results.iter().map(|answer| answer.question_id),
    )?;
    let asked = index(
        annotation_path,
        ASKED,
        annotations.iter().map(|a| a.question_id),
    )?;
    if let Some(stray) = results.iter().find(|r| !asked.contains_key(&r.question_id)) {
        return Err(Error::UnknownId {
            path: path.into(),
            what: "question",
            id: stray.question_id.to_string(),
            other: annotation_path.into(),
        });
    }
    let missing = || {
        let ids = annotations.iter().map(|a| a.question_id);
        ids.filter(|id| !answered.contains_key(id))
    };
    if let Some(first) = missing().next() {
        return Err(JudgedFault::MissingPredictions {
            path: path.into(),
            what: "question",
            first: first.to_string(),
            n_missing: missing().count(),
            n: annotations.len(),
        }
        .into());
    }
    let judged = annotations.par_iter().map(|annotation| {
        let answer = &results[answered[&annotation.question_id]].answer;
        Judged {
            image_id: annotation.image_id,
            answer_type: &annotation.answer_type,
            question_type: &annotation.question_type,
            accuracy: accuracy(answer, &annotation.answers),
            soft_score: soft_score(answer, &annotation.answers),
        }
    });
    Ok(judged.collect())
}

/// The position of each question.
fn index(
    path: &Path,
    what: &'static str,
    ids: impl Iterator<Item = i64>,
) -> Result<HashMap<i64, usize>> {
    let mut positions = HashMap::with_capacity(ids.size_hint().0);
    for (position, id) in ids.enumerate() {
        if positions.insert(id, position).is_some() {
            return Err(Error::DuplicateId {
                path: path.into(),
                what,
                id: id.to_string(),
            });
        }
    }
    Ok(positions)
}
