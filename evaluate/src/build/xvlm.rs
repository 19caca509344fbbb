//! Arrow files of X-VLM's JSON files.

use std::collections::HashSet;

use super::plan::{CAPTIONS, Cell, Kind, Picture, Place, Row, TablePlan};
use super::{BuildOptions, chosen, vqa};
use crate::datasets::vqa::{ANSWERS, Question};
use crate::datasets::xvlm::questions::number_at_end;
use crate::datasets::xvlm::{JsonFiles, captions, questions, statements};
use crate::datasets::{DatasetSpec, Kind as Rows, Split};
use crate::{Error, Result};

/// A part of the name of each picture of COCO's validation images: those of them that train are in the table
/// `restval`.
const VALIDATION: &str = "val2014";

/// The plans of a data set whose JSON files are in the raw folder; `None` where none of them is there, or a split
/// is asked for that they do not have.
///
/// # Errors
/// As the readers of the files.
pub(super) fn plan(
    dataset: &'static DatasetSpec,
    options: &BuildOptions,
) -> Result<Option<Vec<TablePlan>>> {
    let mut found = Vec::new();
    for split in dataset.splits.iter().filter(|split| split.json.len() == 1) {
        if let Some(files) = JsonFiles::find(&options.raw, dataset, split)? {
            found.push((split, files));
        }
    }
    let known: Vec<&str> = found.iter().map(|(split, _)| split.name).collect();
    let is_known = |name: &String| known.contains(&name.as_str());
    if known.is_empty() || !options.splits.iter().all(is_known) {
        return Ok(None);
    }
    let wanted = chosen(dataset.name, &known, options)?;
    let mut plans = Vec::new();
    for (split, files) in &found {
        if wanted.contains(&split.name) {
            plans.extend(match dataset.kind {
                Rows::Questions => of_questions(split, files, options)?,
                Rows::Statements => vec![of_statements(split, files)?],
                Rows::Captions | Rows::Texts | Rows::Classes => of_captions(split, files)?,
            });
        }
    }
    Ok(Some(plans))
}

fn table(name: &str, columns: &[(&'static str, Kind)], is_pair: bool, rows: Vec<Row>) -> TablePlan {
    TablePlan {
        name: name.to_owned(),
        columns: columns.to_vec(),
        is_pair,
        rows,
        left_out: Vec::new(),
        notes: Vec::new(),
    }
}

fn of_captions(split: &Split, files: &JsonFiles) -> Result<Vec<TablePlan>> {
    let images = captions::read(files)?;
    let mut seen = HashSet::new();
    // The rows of each table of the split.
    let mut rows: Vec<Vec<Row>> = split.tables.iter().map(|_| Vec::new()).collect();
    for (picture, captions) in images.pictures.pictures().iter().zip(images.captions) {
        let name = picture.name.rsplit('/').next().unwrap_or_default();
        if !seen.insert(name.to_owned()) {
            return Err(Error::DuplicateId {
                path: picture.place.file.to_path_buf(),
                what: "image",
                id: name.to_owned(),
            });
        }
        let is_rest = split.tables.len() > 1 && picture.name.contains(VALIDATION);
        let of_split = match is_rest {
            true => "restval",
            false => split
                .tables
                .first()
                .map_or(split.name, |table| split_of(table)),
        };
        let row = Row {
            place: picture.place.clone(),
            pictures: vec![Picture::file(images.pictures.path_of(picture))],
            cells: vec![
                Cell::Texts(captions),
                Cell::Text(name.to_owned()),
                Cell::Text(of_split.to_owned()),
            ],
        };
        rows[usize::from(is_rest)].push(row);
    }
    let tables = split.tables.iter().zip(rows);
    let tables = tables.filter(|(_, rows)| !rows.is_empty());
    Ok(tables
        .map(|(name, rows)| table(name, &CAPTIONS, false, rows))
        .collect())
}

/// The split that the name of a table ends in.
fn split_of(table: &str) -> &str {
    table.rsplit('_').next().unwrap_or(table)
}

fn of_questions(
    split: &Split,
    files: &JsonFiles,
    options: &BuildOptions,
) -> Result<Vec<TablePlan>> {
    let read = questions::read(files)?;
    let mut of_images: Vec<Vec<Question>> = Vec::new();
    of_images.resize_with(read.pictures.pictures().len(), Vec::new);
    for question in read.questions {
        of_images[question.image].push(question);
    }
    let mut rows = Vec::with_capacity(of_images.len());
    for (picture, questions) in read.pictures.pictures().iter().zip(of_images) {
        let Some(image_id) = number_at_end(&picture.name) else {
            let fault = format!(
                "`image`: {:?} ends in no number, which is its id",
                picture.name
            );
            return Err(picture.place.fault(fault));
        };
        let path = read.pictures.path_of(picture);
        rows.push(row_of(
            split.name,
            picture.place.clone(),
            path,
            image_id,
            questions,
        ));
    }
    // Strings always have a JSON form.
    let words =
        (read.answers.as_ref()).map(|words| serde_json::to_string(words).unwrap_or_default());
    let notes = || words.iter().map(|words| (ANSWERS, words.clone())).collect();
    let table = |name: &str, rows| vqa::table(name, rows, Vec::new(), notes());
    Ok(match split.name {
        "val" => {
            let [all, trainable, rest] = vqa::shuffled(rows, options.seed);
            let parts = [
                ("val", all),
                ("trainable_val", trainable),
                ("rest_val", rest),
            ];
            parts.map(|(name, rows)| table(name, rows)).into()
        }
        name => vec![table(name, rows)],
    })
}

fn row_of(
    split: &str,
    place: Place,
    path: std::path::PathBuf,
    image_id: i64,
    questions: Vec<Question>,
) -> Row {
    let is_judged = questions
        .iter()
        .any(|question| !question.answers.is_empty());
    let judged = || questions.iter().filter(|_| is_judged);
    let answers = judged().map(|question| question.answers.clone()).collect();
    let labels = judged()
        .map(|question| question.answer_labels.clone())
        .collect();
    let scores = judged()
        .map(|question| question.answer_scores.clone())
        .collect();
    let ids = questions
        .iter()
        .map(|question| question.question_id)
        .collect();
    let texts = questions
        .into_iter()
        .map(|question| question.text)
        .collect();
    Row {
        place,
        pictures: vec![Picture::file(path)],
        cells: vec![
            Cell::Texts(texts),
            Cell::TextLists(answers),
            Cell::IntegerLists(labels),
            Cell::FloatLists(scores),
            Cell::Integer(image_id),
            Cell::Integers(ids),
            Cell::Text(split.to_owned()),
        ],
    }
}

fn of_statements(split: &Split, files: &JsonFiles) -> Result<TablePlan> {
    let read = statements::read(files)?;
    let pictures = read.pictures.pictures();
    let mut rows: Vec<Row> = Vec::new();
    for statement in read.statements {
        if statement.pair == rows.len() {
            let sides = &pictures[2 * statement.pair..2 * statement.pair + 2];
            let paths = sides
                .iter()
                .map(|picture| Picture::file(read.pictures.path_of(picture)));
            rows.push(Row {
                place: sides[0].place.clone(),
                pictures: paths.collect(),
                cells: vec![
                    Cell::Texts(Vec::new()),
                    Cell::Texts(Vec::new()),
                    Cell::Text(statement.identifier),
                ],
            });
        }
        let label = statement
            .label
            .map(|label| if label { "True" } else { "False" });
        let added = [Some(statement.sentence), label.map(str::to_owned)];
        for (cell, text) in rows[statement.pair].cells.iter_mut().zip(added) {
            if let (Cell::Texts(texts), Some(text)) = (cell, text) {
                texts.push(text);
            }
        }
    }
    let columns = [
        ("questions", Kind::Texts),
        ("answers", Kind::Texts),
        ("identifier", Kind::Text),
    ];
    let name = split.tables.first().copied().unwrap_or(split.name);
    Ok(table(name, &columns, true, rows))
}
