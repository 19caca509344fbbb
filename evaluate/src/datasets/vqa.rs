//! VQA v2: images with questions, each with the answers of people.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::left_out::Omission;
use super::rows::Table;
use super::source::Source;
use super::splits::{self, Opened, Tables};
use super::xvlm::{self, JsonFiles};
use super::{DATASETS, Kind};
use crate::images::Rgb;
use crate::{DataFault, Error, Result};

const IMAGE: [&str; 1] = ["image"];

/// The metadata key under which a file, and a checkpoint with a VQA head, notes the answer of each class: a JSON list
/// in the order of the classes.
pub const ANSWERS: &str = "vlmerge.answers";

/// A question about an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The question.
    pub text: String,
    /// Its official id.
    pub question_id: i64,
    /// The image it is about, from 0.
    pub image: usize,
    /// The official id of that image.
    pub image_id: i64,
    /// The answers that the classifier knows; none in a test split.
    pub answers: Vec<String>,
    /// The class of each.
    pub answer_labels: Vec<i64>,
    /// The soft score of each.
    pub answer_scores: Vec<f64>,
}

/// A split of questions. Texts are in memory, pictures are read on request.
#[derive(Debug)]
pub struct VqaSet {
    source: Source,
    questions: Vec<Question>,
    /// The answers by class, where the files have a list of them.
    answers: Option<Vec<String>>,
}

impl VqaSet {
    /// Opens a split such as `rest_val` or `test-dev` in a folder of arrow files, or of X-VLM's JSON files (see
    /// [`xvlm`]).
    ///
    /// # Errors
    /// [`DataFault::UnknownSplit`] for its name, [`DataFault::MissingTable`] when a file is not there,
    /// [`Error::Empty`] when it has no rows, [`Error::DuplicateId`] when a question occurs twice,
    /// and an error that names file and row when the lists of a row differ in length, or a JSON entry is not
    /// as it should be.
    pub fn open(folder: &Path, split: &str) -> Result<Self> {
        match splits::open(folder, "vqa", Kind::Questions, split)? {
            // On small data sets `trainable_val` is empty.
            Opened::Tables(tables) => Self::of_tables(tables.without_empty()),
            Opened::Json(files) => Self::of_json(&files),
        }
    }

    /// Opens arrow files of any names as one split.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub fn of_files(files: &[PathBuf]) -> Result<Self> {
        let tables: Result<_> = files.iter().map(|file| Table::open(file)).collect();
        Self::of_tables(Tables::new(tables?))
    }

    /// The questions of X-VLM's JSON files. The only answer of an entry of Visual Genome scores 1; an answer that
    /// people gave once to four times 0.3, 0.6, 0.9 and 1. The number at the end of a picture's name is the id of
    /// the image.
    ///
    /// # Errors
    /// An error that names file, entry and field of a wrong value, such as an answer that the list
    /// of answers lacks; [`Error::DuplicateId`] for a question that a data set has twice; [`Error::Empty`].
    pub fn of_json(files: &JsonFiles) -> Result<Self> {
        let read = xvlm::questions::read(files)?;
        Ok(Self {
            source: Source::Listed(read.pictures),
            questions: read.questions,
            answers: read.answers,
        })
    }

    fn of_tables(tables: Tables) -> Result<Self> {
        tables.check_rows("images with questions")?;
        let mut of_images = Vec::new();
        for table in tables.iter() {
            of_images.extend(rows(table)?);
        }
        let mut questions = Vec::new();
        let mut seen = HashSet::new();
        for (image, row) in tables.that_count(of_images).into_iter().enumerate() {
            for question in row {
                if !seen.insert(question.question_id) {
                    let path = tables.place(image).map(|(table, _)| table.path());
                    return Err(Error::DuplicateId {
                        path: path.unwrap_or(Path::new("")).into(),
                        what: "question",
                        id: question.question_id.to_string(),
                    });
                }
                questions.push(Question { image, ..question });
            }
        }
        Ok(Self {
            source: Source::Tables(tables),
            questions,
            answers: None,
        })
    }

    /// The answer of each class: what the files of the split say, or else other files of the folder.
    ///
    /// # Errors
    /// As [`label_answers`].
    pub fn label_answers(&self, folder: &Path) -> Result<BTreeMap<i64, String>> {
        match &self.answers {
            Some(answers) => Ok((0..).zip(answers.iter().cloned()).collect()),
            None => label_answers(folder),
        }
    }

    /// The first `n` questions alone.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.questions.truncate(n);
        self
    }

    /// The omissions that the files note, though the annotations have them.
    ///
    /// # Errors
    /// When a file's note of it is damaged.
    pub fn left_out(&self) -> Result<Vec<Omission>> {
        self.source.left_out()
    }

    /// Number of images.
    #[must_use]
    pub fn n_images(&self) -> usize {
        self.source.n_rows(IMAGE.len())
    }

    /// The questions: image by image in arrow files, in the order of JSON files.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The bytes of the picture file of an image.
    ///
    /// # Errors
    /// When the row does not exist or cannot be read; file and row are named.
    pub fn image_bytes(&self, image: usize) -> Result<Vec<u8>> {
        self.source.bytes(&IMAGE, 0, image)
    }

    /// The decoded picture of an image.
    ///
    /// # Errors
    /// As [`image_bytes`](Self::image_bytes)'s, and when it is damaged.
    pub fn picture(&self, image: usize) -> Result<Rgb> {
        self.source.picture(&IMAGE, 0, image)
    }

    /// Looks whether the pictures of all questions are there, as far as that takes no decoding.
    ///
    /// # Errors
    /// For the first picture of a JSON file that is not there, with file and entry.
    pub fn check_pictures(&self) -> Result<()> {
        let last = self.questions.iter().map(|question| question.image).max();
        self.source.check(last.map_or(0, |last| last + 1))
    }
}

/// The questions of each row of a table.
fn rows(table: &Table) -> Result<Vec<Vec<Question>>> {
    let texts: Vec<Vec<String>> = table.column("questions")?;
    let ids: Vec<Vec<i64>> = table.column("question_id")?;
    let image_ids: Vec<i64> = table.column("image_id")?;
    let answers: Vec<Vec<Vec<String>>> = table.column("answers")?;
    let labels: Vec<Vec<Vec<i64>>> = table.column("answer_labels")?;
    let scores: Vec<Vec<Vec<f64>>> = table.column("answer_scores")?;
    let lists = texts.into_iter().zip(ids).zip(image_ids);
    let lists = lists.zip(answers).zip(labels).zip(scores);
    let mut rows = Vec::with_capacity(table.n_rows());
    for (row, (((((texts, ids), image_id), answers), labels), scores)) in lists.enumerate() {
        let n_questions = texts.len();
        if n_questions == 0 {
            return Err(table.row_fault(row, "the image has no question"));
        }
        if ids.len() != n_questions {
            let fault = format!("{n_questions} `questions`, {} `question_id`", ids.len());
            return Err(table.row_fault(row, fault));
        }
        let lengths = [answers.len(), labels.len(), scores.len()];
        if lengths != [0; 3] && lengths != [n_questions; 3] {
            let fault = format!(
                "{n_questions} `questions`, {} `answers`, {} `answer_labels`, {} `answer_scores`",
                lengths[0], lengths[1], lengths[2]
            );
            return Err(table.row_fault(row, fault));
        }
        let mut answers = answers.into_iter();
        let (mut labels, mut scores) = (labels.into_iter(), scores.into_iter());
        let mut questions = Vec::with_capacity(n_questions);
        for (text, question_id) in texts.into_iter().zip(ids) {
            let question = Question {
                text,
                question_id,
                image: row,
                image_id,
                answers: answers.next().unwrap_or_default(),
                answer_labels: labels.next().unwrap_or_default(),
                answer_scores: scores.next().unwrap_or_default(),
            };
            let n_answers = question.answers.len();
            let lengths = [question.answer_labels.len(), question.answer_scores.len()];
            if lengths != [n_answers; 2] {
                let fault = format!(
                    "question {question_id} has {n_answers} answers, {} labels, {} scores",
                    lengths[0], lengths[1]
                );
                return Err(table.row_fault(row, fault));
            }
            if let Some(score) = (question.answer_scores.iter()).find(|s| !(0.0..=1.0).contains(*s))
            {
                let fault = format!("question {question_id} has an answer with score {score}");
                return Err(table.row_fault(row, fault));
            }
            questions.push(question);
        }
        rows.push(questions);
    }
    Ok(rows)
}

/// The answer of each class, as the training and validation files in a folder tell it; files that
/// are not there are passed over, for any of them is enough if it has all classes.
///
/// # Errors
/// [`DataFault::MissingTable`] when none of the files is there, an error that names file and row when
/// a class has two answers or a label is negative.
pub fn label_answers(folder: &Path) -> Result<BTreeMap<i64, String>> {
    let names = ["train", "val", "trainable_val", "rest_val"];
    let mut answers: BTreeMap<i64, String> = BTreeMap::new();
    let mut add = |label: i64, answer: String| -> Result<(), String> {
        if let Some(known) = answers.get(&label).filter(|known| **known != answer) {
            return Err(format!("label {label} is {answer:?}, elsewhere {known:?}"));
        }
        answers.entry(label).or_insert(answer);
        Ok(())
    };
    let mut n_files = 0;
    for name in names {
        let tables = match splits::open(folder, "vqa", Kind::Questions, name) {
            Ok(Opened::Tables(tables)) => tables,
            Ok(Opened::Json(_)) | Err(Error::Data(DataFault::MissingTable { .. })) => continue,
            Err(error) => return Err(error),
        };
        for table in tables.iter() {
            n_files += 1;
            if let Some(list) = table.note::<Vec<String>>(ANSWERS)? {
                for (label, answer) in (0..).zip(list) {
                    add(label, answer).map_err(|fault| table.fault(fault))?;
                }
                continue;
            }
            let of_rows = rows(table)?;
            for (row, questions) in of_rows.into_iter().enumerate() {
                for question in questions {
                    let pairs = question.answer_labels.iter().zip(question.answers);
                    for (&label, answer) in pairs {
                        if label < 0 {
                            return Err(table.row_fault(row, format!("label {label}")));
                        }
                        add(label, answer).map_err(|fault| table.row_fault(row, fault))?;
                    }
                }
            }
        }
    }
    if n_files == 0 {
        let of_vqa = DATASETS
            .iter()
            .filter(|dataset| dataset.kind == Kind::Questions);
        let splits = of_vqa.flat_map(|dataset| dataset.splits);
        let tables = splits.filter(|split| names.contains(&split.name));
        let tables: Vec<_> = tables.flat_map(|split| split.tables).copied().collect();
        return Err(Error::Data(DataFault::MissingTable {
            folder: folder.into(),
            names: format!("answers: none of {} is there", tables.join(", ")),
        }));
    }
    Ok(answers)
}
