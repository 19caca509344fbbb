//! Some rows of every file as one HTML page that needs nothing else.

use std::path::{Path, PathBuf};

use askama::Template;

use super::picture_columns;
use crate::Result;
use crate::datasets::arrow::Table;
use crate::images;

/// The longer side of a picture on the page.
const SIDE: usize = 240;

/// The most texts of a row that are shown, and the most characters of each.
const MAX_TEXTS: usize = 6;
const MAX_CHARS: usize = 300;

#[derive(Template)]
#[template(path = "sheet.html")]
struct Page {
    files: Vec<File>,
}

struct File {
    name: String,
    n_rows: usize,
    rows: Vec<Row>,
}

struct Row {
    number: usize,
    id: String,
    pictures: Vec<Picture>,
    texts: Vec<Text>,
    n_more: usize,
}

struct Picture {
    /// A PNG of ours, in base 64; nothing of the original file gets into the page.
    address: String,
    width: usize,
    height: usize,
    /// Its fault, if it has one.
    fault: String,
}

struct Text {
    text: String,
    answer: String,
}

/// A page of `n_rows` rows of each file, spread evenly: small copies of the pictures
/// with their texts. Names, texts and faults are escaped, and the page loads nothing.
///
/// # Errors
/// When a file is damaged. A damaged picture is shown as its fault.
pub fn sheet(files: &[PathBuf], n_rows: usize) -> Result<String> {
    let files: Result<Vec<File>> = files.iter().map(|path| file(path, n_rows)).collect();
    let page = Page { files: files? };
    Ok(page.render()?)
}

fn file(path: &Path, n_rows: usize) -> Result<File> {
    let table = Table::open(path)?;
    let n = table.n_rows();
    let n_shown = n_rows.min(n);
    let lists = |name: &str| -> Result<Vec<Vec<String>>> {
        match table.has(name) {
            true => table.text_lists(name),
            false => Ok(Vec::new()),
        }
    };
    let (captions, questions) = (lists("caption")?, lists("questions")?);
    let texts = if captions.is_empty() {
        &questions
    } else {
        &captions
    };
    let answers: Vec<Vec<String>> = match table.column::<Vec<Vec<String>>>("answers") {
        Ok(answers) => {
            let joined = |of: Vec<Vec<String>>| of.iter().map(|words| words.join(", ")).collect();
            answers.into_iter().map(joined).collect()
        }
        Err(_) => lists("answers").unwrap_or_default(),
    };
    let ids = match ["image_id", "identifier"]
        .iter()
        .find(|name| table.has(name))
    {
        Some(name) => table.ids(name)?,
        None => Vec::new(),
    };
    let columns: Vec<&str> = picture_columns(&table).collect();
    let rows = (0..n_shown).map(|index| {
        let number = index * n / n_shown;
        let pictures = columns.iter().map(|column| picture(&table, column, number));
        let of_row = texts.get(number).map_or(&[][..], Vec::as_slice);
        let shown = of_row.iter().take(MAX_TEXTS).enumerate();
        Row {
            number,
            id: ids.get(number).cloned().unwrap_or_default(),
            pictures: pictures.collect(),
            texts: shown
                .map(|(place, text)| Text {
                    text: short(text),
                    answer: (answers.get(number).and_then(|answers| answers.get(place)))
                        .map(|answer| short(answer))
                        .unwrap_or_default(),
                })
                .collect(),
            n_more: of_row.len().saturating_sub(MAX_TEXTS),
        }
    });
    Ok(File {
        name: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        n_rows: n,
        rows: rows.collect(),
    })
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn picture(table: &Table, column: &str, row: usize) -> Picture {
    let made = table.bytes(column, row).and_then(|bytes| {
        let picture = images::decode(&bytes)?;
        let (width, height) = (picture.width, picture.height);
        Ok(Picture {
            address: images::thumbnail(&picture, SIDE)?,
            width,
            height,
            fault: String::new(),
        })
    });
    made.unwrap_or_else(|error| Picture {
        address: String::new(),
        width: 0,
        height: 0,
        fault: error.to_string(),
    })
}
