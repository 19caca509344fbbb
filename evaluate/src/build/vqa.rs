//! VQA v2: question files, annotation files, and a vocabulary of answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::plan::{Cell, Kind, Picture, Place, Row, TablePlan};
use super::shuffle::shuffle;
use super::{BuildOptions, chosen};
use crate::datasets::left_out::Omission;
use crate::datasets::vqa::ANSWERS;
use crate::metrics::answers::{soft_score_of_count, vocabulary};
use crate::predictions::file;
use crate::{DataFault, Error, JudgedFault, Result};

/// The least number of times that an answer must occur to become a class.
const LEAST: usize = 9;

/// The number of images at the end of the validation split that are kept apart for validation.
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

pub(crate) fn plan(options: &BuildOptions) -> Result<Vec<TablePlan>> {
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
            let (rows, dropped) = judged(&options.raw, "train", "train2014", &train, &labels)?;
            plans.push(dropped.table("train", rows, true, &words));
        }
        if wanted.contains(&"val") {
            let (rows, dropped) = judged(&options.raw, "val", "val2014", &val, &labels)?;
            let [rows, trainable, rest] = shuffled(rows, options.seed);
            plans.push(dropped.table("val", rows, true, &words));
            // Images without a question left are of no part; they are listed with the larger one.
            plans.push(dropped.table("trainable_val", trainable, true, &words));
            plans.push(dropped.table("rest_val", rest, false, &words));
        }
    }
    for (split, year) in [("test", "test2015"), ("test-dev", "test-dev2015")] {
        if wanted.contains(&split) {
            let (_, images) = questions(&options.raw, year)?;
            let rows = images.into_iter().map(|(image_id, image)| {
                row(&options.raw, split, "test2015", image_id, image, None)
            });
            plans.push(table(split, rows.collect(), Vec::new(), Vec::new()));
        }
    }
    Ok(plans)
}

/// All rows of the validation split in a new order, those that may be trained on, and those that stay apart.
pub(super) fn shuffled(mut rows: Vec<Row>, seed: u64) -> [Vec<Row>; 3] {
    shuffle(&mut rows, seed);
    let (trainable, rest) = rows.split_at(rows.len().saturating_sub(N_REST));
    let (trainable, rest) = (trainable.to_vec(), rest.to_vec());
    [rows, trainable, rest]
}

pub(super) fn table(
    split: &str,
    rows: Vec<Row>,
    left_out: Vec<Omission>,
    notes: Vec<(&'static str, String)>,
) -> TablePlan {
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
        left_out,
        notes,
    }
}

/// Questions without an answer of the vocabulary.
struct Dropped {
    /// By image, of images that keep other questions.
    of_kept: HashMap<i64, Vec<i64>>,
    /// Images that keep none, with their questions.
    images: Vec<(i64, Vec<i64>)>,
}

impl Dropped {
    /// The table of some images. It notes the questions that they lost, and with `has_images` the images
    /// that lost all of theirs.
    fn table(&self, split: &str, rows: Vec<Row>, has_images: bool, words: &[String]) -> TablePlan {
        let mut questions: Vec<i64> = Vec::new();
        let (mut n_kept, n_rows) = (0, rows.len());
        for row in &rows {
            for cell in &row.cells {
                match cell {
                    Cell::Integer(image) => {
                        questions.extend(self.of_kept.get(image).into_iter().flatten());
                    }
                    Cell::Integers(ids) => n_kept += ids.len(),
                    _ => {}
                }
            }
        }
        let gone = self.images.iter().filter(|_| has_images);
        let images: Vec<i64> = gone.clone().map(|(image, _)| *image).collect();
        questions.extend(gone.flat_map(|(_, questions)| questions));
        questions.sort_unstable();
        let omission = |what: &str, why: &str, ids: Vec<i64>, n_kept: usize| {
            let of = ids.len() + n_kept;
            let ids = ids.iter().map(ToString::to_string).collect();
            Omission::of_ids(what, why.into(), ids, of)
        };
        let left_out = [
            omission(
                "questions",
                "no answer in the vocabulary",
                questions,
                n_kept,
            ),
            omission("images", "no question left", images, n_rows),
        ];
        let left_out = left_out.into_iter().flatten();
        // Strings always have a JSON form.
        let words = serde_json::to_string(words).unwrap_or_default();
        table(split, rows, left_out.collect(), vec![(ANSWERS, words)])
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
) -> Result<(Vec<Row>, Dropped)> {
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
    let mut lost = Dropped {
        of_kept: HashMap::new(),
        images: Vec::new(),
    };
    for (image_id, mut image) in images {
        let mut answers = Vec::new();
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
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
                return Err(JudgedFault::ImageDiffers {
                    path: path.clone(),
                    question: id,
                    found: annotation.image_id,
                    expected: image_id,
                    other: questions_path,
                }
                .into());
            }
            let scored = scored(annotation, labels);
            if scored.is_empty() {
                dropped.push(id);
            } else {
                answers.push(scored);
                kept.push(question);
            }
        }
        image.questions = kept;
        if image.questions.is_empty() {
            lost.images.push((image_id, dropped));
            continue;
        }
        if !dropped.is_empty() {
            lost.of_kept.insert(image_id, dropped);
        }
        rows.push(row(raw, split, year, image_id, image, Some(answers)));
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
    Ok((rows, lost))
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
        pictures: vec![Picture::file(raw.join(year).join(name))],
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
