//! Questions about images, with their answers.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::{ANSWER_LIST, Id, JsonFiles, Listed, ListedPicture, places};
use crate::build::plan::{Place, shown};
use crate::datasets::vqa::Question;
use crate::metrics::answers::soft_score_of_count;
use crate::predictions::file;
use crate::{DataFault, Error, Result};

/// The data set whose entries have the answers of ten people.
const JUDGED: &str = "vqa";

/// The data set whose entries have one answer.
const SINGLE: &str = "vg";

/// The score of the only answer of an entry.
const SURE: f64 = 1.0;

#[derive(Deserialize)]
struct Entry {
    question: String,
    question_id: Id,
    image: String,
    answer: Option<Answers>,
    dataset: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "an answer or a list of answers")]
enum Answers {
    One(String),
    Many(Vec<String>),
}

/// The questions of JSON files.
#[derive(Debug)]
pub(crate) struct Questions {
    /// The pictures, by number.
    pub(crate) pictures: Listed,
    /// The questions, in the order of the files.
    pub(crate) questions: Vec<Question>,
    /// The answers by class, where there is a list.
    pub(crate) answers: Option<Vec<String>>,
}

/// Reads questions. An answer that `n` people gave scores 0.3, 0.6, 0.9 or, from four on, 1; the only answer of
/// Visual Genome scores 1. Images are numbered by their first question.
///
/// # Errors
/// [`Error::JsonEntry`] and the like for a file of another form; [`DataFault::Row`] with file and entry for an answer
/// that the list lacks, for an unknown `dataset`, for an `answer` of the wrong form, for a `question_id` that is no
/// number, and for a picture out of its folder; [`Error::DuplicateId`] for a question or an answer of the list that
/// occurs twice; [`DataFault::MissingTable`] for answers without a list; [`Error::Empty`].
pub(crate) fn read(files: &JsonFiles) -> Result<Questions> {
    let answers = files.answers.as_deref().map(answer_list).transpose()?;
    let list: Option<HashMap<&str, i64>> =
        (answers.as_ref()).map(|answers| answers.iter().map(String::as_str).zip(0..).collect());
    let mut pictures = files.listed();
    let mut questions = Vec::new();
    let mut number_of: HashMap<(usize, String), usize> = HashMap::new();
    let mut seen = HashSet::new();
    for path in &files.files {
        let entries: Vec<Entry> = file::json(path, "a list of questions about images")?;
        for (entry, place) in entries.into_iter().zip(places(path)) {
            let root = files.root(entry.dataset.as_deref(), &place)?;
            let question_id = whole(&entry.question_id, &place)?;
            if !seen.insert((root, question_id)) {
                return Err(Error::DuplicateId {
                    path: path.clone(),
                    what: "question",
                    id: question_id.to_string(),
                });
            }
            let counted = counted(entry.answer, entry.dataset.as_deref(), &place)?;
            let labels = counted.iter().map(|(answer, _)| match &list {
                None => Err(Error::Data(DataFault::MissingTable {
                    folder: path.parent().unwrap_or(Path::new(".")).into(),
                    names: format!("{ANSWER_LIST}, which the answers of {} need", path.display()),
                })),
                Some(list) => list.get(answer.as_str()).copied().ok_or_else(|| {
                    let (answer, n) = (shown(answer), list.len());
                    place.fault(format!(
                        "`answer`: {answer} is not among the {n} answers of {ANSWER_LIST}; leave the \
                         answer out, or add it to the list"
                    ))
                }),
            });
            let answer_labels = labels.collect::<Result<Vec<i64>>>()?;
            let image = match number_of.get(&(root, entry.image.clone())) {
                Some(&image) => image,
                None => {
                    number_of.insert((root, entry.image.clone()), pictures.len());
                    let name = entry.image.clone();
                    pictures.add(ListedPicture { root, name, place })?
                }
            };
            let (answers, answer_scores) = counted.into_iter().unzip();
            questions.push(Question {
                text: entry.question,
                question_id,
                image,
                image_id: number_at_end(&entry.image).unwrap_or(image as i64),
                answers,
                answer_labels,
                answer_scores,
            });
        }
    }
    match (questions.is_empty(), files.files.first()) {
        (true, path) => Err(Error::Empty {
            path: path.cloned().unwrap_or_default(),
            what: "questions",
        }),
        _ => Ok(Questions {
            pictures,
            questions,
            answers,
        }),
    }
}

/// The answers that a classifier tells apart, by class.
///
/// # Errors
/// [`Error::JsonEntry`] and the like when the file is no list of texts, [`Error::DuplicateId`] for an answer that
/// occurs twice, [`Error::Empty`].
pub(crate) fn answer_list(path: &Path) -> Result<Vec<String>> {
    let answers: Vec<String> = file::json(path, "a list of answers")?;
    let mut seen = HashSet::new();
    if let Some(twice) = answers.iter().find(|answer| !seen.insert(answer.as_str())) {
        return Err(Error::DuplicateId {
            path: path.into(),
            what: "answer",
            id: twice.clone(),
        });
    }
    match answers.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "answers",
        }),
        false => Ok(answers),
    }
}

/// Distinct answers by first appearance, with their scores.
fn counted(
    answers: Option<Answers>,
    dataset: Option<&str>,
    place: &Place,
) -> Result<Vec<(String, f64)>> {
    let dataset = dataset.unwrap_or(JUDGED);
    match answers {
        None => Ok(Vec::new()),
        Some(Answers::One(_)) if dataset == JUDGED => {
            Err(place.fault("`answer` is one text; entries of `vqa` have a list of answers"))
        }
        Some(Answers::One(answer)) => Ok(vec![(answer, SURE)]),
        Some(Answers::Many(_)) if dataset == SINGLE => {
            Err(place.fault("`answer` is a list; entries of `vg` have one text"))
        }
        Some(Answers::Many(all)) => {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            for answer in &all {
                *counts.entry(answer).or_default() += 1;
            }
            // Each where it appears first.
            let distinct = all.iter().filter_map(|answer| {
                let n = counts.remove(answer.as_str())?;
                Some((answer.clone(), soft_score_of_count(n)))
            });
            Ok(distinct.collect())
        }
    }
}

fn whole(id: &Id, place: &Place) -> Result<i64> {
    match id {
        Id::Number(number) => Ok(*number),
        Id::Name(name) => name.parse().map_err(|_| {
            let name = shown(name);
            place.fault(format!("`question_id` is {name}, which is no whole number"))
        }),
    }
}

/// The number that a picture's name ends in, as in `COCO_val2014_000000000042.jpg`.
pub(crate) fn number_at_end(name: &str) -> Option<i64> {
    let stem = Path::new(name).file_stem()?.to_str()?;
    let n_digits = stem.bytes().rev().take_while(u8::is_ascii_digit).count();
    stem[stem.len() - n_digits..].parse().ok()
}
