//! VQA v2: question files, annotation files, and a vocabulary of answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::plan::{Cell, Kind, Picture, Place, Row, TablePlan};
use super::shuffle::shuffle;
use super::{BuildOptions, chosen};
use crate::metrics::answers::{soft_score_of_count, vocabulary};
use crate::predictions::file;
use crate::{DataFault, Error, Result};

/// How often an answer must occur to become a class.
const LEAST: usize = 9;

/// So many images of the validation split, the last, are kept apart for validation.
const N_REST: usize = 1000;

const SPLITS: [&str; 4] = ["train", "val", "test", "test-dev"];

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    image_id: i64,
    question: String,
    question_id: i64,
}

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    question_id: i64,
    multiple_choice_answer: String,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
}

pub(super) fn plan(options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let wanted = chosen("vqa", &SPLITS, options)?;
    let mut plans = Vec::new();
    if wanted.contains(&"train") || wanted.contains(&"val") {
        // The classes come from both files, whatever is built.
        let train = annotations(&options.raw, "train2014")?;
        let val = annotations(&options.raw, "val2014")?;
        let all = train.1.iter().chain(&val.1);
        let words = vocabulary(all.map(|a| a.multiple_choice_answer.as_str()), LEAST);
        let labels: HashMap<&str, i64> = words.iter().map(String::as_str).zip(0..).collect();
        if wanted.contains(&"train") {
            let rows = judged(&options.raw, "train", "train2014", &train, &labels)?;
            plans.push(table("train", rows));
        }
        if wanted.contains(&"val") {
            let mut rows = judged(&options.raw, "val", "val2014", &val, &labels)?;
            shuffle(&mut rows, options.seed);
            let rest = rows.split_at(rows.len().saturating_sub(N_REST));
            let (trainable, rest) = (rest.0.to_vec(), rest.1.to_vec());
            plans.push(table("val", rows));
            plans.push(table("trainable_val", trainable));
            plans.push(table("rest_val", rest));
        }
    }
    for (split, year) in [("test", "test2015"), ("test-dev", "test-dev2015")] {
        if wanted.contains(&split) {
            let (_, images) = questions(&options.raw, year)?;
            let rows = images.into_iter().map(|(image_id, image)| {
                row(&options.raw, split, "test2015", image_id, image, None)
            });
            plans.push(table(split, rows.collect()));
        }
    }
    Ok(plans)
}

fn table(split: &str, rows: Vec<Row>) -> TablePlan {
    TablePlan {
        name: format!("vqav2_{split}"),
        columns: vec![
            ("questions", Kind::Texts),
            ("answers", Kind::TextLists),
            ("answer_labels", Kind::IntegerLists),
            ("answer_scores", Kind::FloatLists),
            ("image_id", Kind::Integer),
            ("question_id", Kind::Integers),
            ("split", Kind::Text),
        ],
        is_pair: false,
        rows,
    }
}

/// The questions about an image.
struct Image {
    place: Place,
    questions: Vec<Question>,
}

/// The questions of a year by image, and their file.
fn questions(raw: &Path, year: &str) -> Result<(PathBuf, BTreeMap<i64, Image>)> {
    let json = raw.join(format!("v2_OpenEnded_mscoco_{year}_questions.json"));
    let list: Questions = file::json(&json, "a question file of VQA")?;
    let path: Arc<Path> = json.as_path().into();
    let mut images: BTreeMap<i64, Image> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for (row, question) in list.questions.into_iter().enumerate() {
        if !seen.insert(question.question_id) {
            return Err(Error::DuplicateId {
                path: json,
                what: "question",
                id: question.question_id.to_string(),
            });
        }
        let place = Place {
            file: Arc::clone(&path),
            row,
        };
        if question.image_id < 0 {
            return Err(place.fault(format!("the image has id {}", question.image_id)));
        }
        let image = images.entry(question.image_id).or_insert_with(|| Image {
            place,
            questions: Vec::new(),
        });
        image.questions.push(question);
    }
    if images.is_empty() {
        return Err(Error::Empty {
            path: json,
            what: "questions",
        });
    }
    Ok((json, images))
}

fn annotations(raw: &Path, year: &str) -> Result<(PathBuf, Vec<Annotation>)> {
    let json = raw.join(format!("v2_mscoco_{year}_annotations.json"));
    let list: Annotations = file::json(&json, "an annotation file of VQA")?;
    Ok((json, list.annotations))
}

/// The rows of a split with answers: questions that no class answers are left out, and images
/// without questions then, as in the published files.
fn judged(
    raw: &Path,
    split: &str,
    year: &str,
    (path, annotations): &(PathBuf, Vec<Annotation>),
    labels: &HashMap<&str, i64>,
) -> Result<Vec<Row>> {
    let (questions_path, images) = questions(raw, year)?;
    let mut of_question: HashMap<i64, &Annotation> = HashMap::new();
    for annotation in annotations {
        let id = annotation.question_id;
        if of_question.insert(id, annotation).is_some() {
            return Err(Error::DuplicateId {
                path: path.clone(),
                what: "question",
                id: id.to_string(),
            });
        }
    }
    let mut rows = Vec::new();
    for (image_id, mut image) in images {
        let mut answers = Vec::new();
        let mut kept = Vec::new();
        for question in image.questions.drain(..) {
            let id = question.question_id;
            let Some(annotation) = of_question.remove(&id) else {
                return Err(Error::UnknownId {
                    path: questions_path,
                    what: "question",
                    id: id.to_string(),
                    other: path.clone(),
                });
            };
            if annotation.image_id != image_id {
                return Err(Error::ImageDiffers {
                    path: path.clone(),
                    question: id,
                    found: annotation.image_id,
                    expected: image_id,
                    other: questions_path,
                });
            }
            let scored = scored(annotation, labels);
            if !scored.is_empty() {
                answers.push(scored);
                kept.push(question);
            }
        }
        image.questions = kept;
        if !image.questions.is_empty() {
            rows.push(row(raw, split, year, image_id, image, Some(answers)));
        }
    }
    if let Some(annotation) = annotations
        .iter()
        .find(|a| of_question.contains_key(&a.question_id))
    {
        return Err(Error::UnknownId {
            path: path.clone(),
            what: "question",
            id: annotation.question_id.to_string(),
            other: questions_path,
        });
    }
    if rows.is_empty() {
        return Err(Error::Data(DataFault::NoSuchExamples {
            path: path.clone(),
            fault: format!("no question has an answer that occurs {LEAST} times"),
        }));
    }
    Ok(rows)
}

/// An answer, its class and its score.
type Scored = (String, i64, f64);

/// The answers to a question that are classes, by first appearance. They are looked up as typed,
/// not in their normal form: a quirk of the published program that its 3129 classes depend on.
fn scored(annotation: &Annotation, labels: &HashMap<&str, i64>) -> Vec<Scored> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for Answer { answer } in &annotation.answers {
        match counts.iter_mut().find(|(known, _)| known == answer) {
            Some((_, count)) => *count += 1,
            None => counts.push((answer, 1)),
        }
    }
    let classes = counts.into_iter().filter_map(|(answer, count)| {
        let label = labels.get(answer)?;
        Some((answer.to_owned(), *label, soft_score_of_count(count)))
    });
    classes.collect()
}

fn row(
    raw: &Path,
    split: &str,
    year: &str,
    image_id: i64,
    image: Image,
    answers: Option<Vec<Vec<Scored>>>,
) -> Row {
    let name = format!("COCO_{year}_{image_id:012}.jpg");
    let answers = answers.unwrap_or_default();
    let list = answers.iter();
    let labels = list
        .clone()
        .map(|of| of.iter().map(|scored| scored.1).collect());
    let scores = list.map(|of| of.iter().map(|scored| scored.2).collect());
    let (labels, scores) = (labels.collect(), scores.collect());
    let words = answers
        .into_iter()
        .map(|of| of.into_iter().map(|scored| scored.0).collect());
    let words = words.collect();
    let ids = image
        .questions
        .iter()
        .map(|question| question.question_id)
        .collect();
    let texts = image
        .questions
        .into_iter()
        .map(|question| question.question)
        .collect();
    Row {
        place: image.place,
        pictures: vec![Picture {
            path: raw.join(year).join(name),
        }],
        cells: vec![
            Cell::Texts(texts),
            Cell::TextLists(words),
            Cell::IntegerLists(labels),
            Cell::FloatLists(scores),
            Cell::Integer(image_id),
            Cell::Integers(ids),
            Cell::Text(split.to_owned()),
        ],
    }
}
