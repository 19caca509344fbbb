//! NLVR2: lines of JSON, one statement each.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::plan::{Cell, Kind, Picture, Place, Row, TablePlan, shown};
use super::{BuildOptions, chosen};
use crate::datasets::nlvr2::{SENTENCES, SentenceNumbers};
use crate::predictions::file;
use crate::{Error, Result};

/// A split and its file.
const FILES: [(&str, &str); 7] = [
    ("train", "train.json"),
    ("dev", "dev.json"),
    ("test1", "test1.json"),
    ("balanced_dev", "balanced/balanced_dev.json"),
    ("balanced_test1", "balanced/balanced_test1.json"),
    ("unbalanced_dev", "unbalanced/unbalanced_dev.json"),
    ("unbalanced_test1", "unbalanced/unbalanced_test1.json"),
];

#[derive(Deserialize)]
struct Statement {
    identifier: String,
    sentence: String,
    label: String,
    directory: Option<Directory>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Directory {
    Number(u64),
    Name(String),
}

pub(crate) fn plan(options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let names = FILES.map(|(name, _)| name);
    let wanted = chosen("nlvr2", &names, options)?;
    let files = FILES.iter().filter(|(name, _)| wanted.contains(name));
    let plans = files.map(|(name, json)| {
        let (rows, numbers) = rows(&options.raw, &options.raw.join("nlvr2/data").join(json))?;
        Ok(TablePlan {
            name: format!("nlvr2_{name}"),
            columns: vec![
                ("questions", Kind::Texts),
                ("answers", Kind::Texts),
                ("identifier", Kind::Text),
            ],
            is_pair: true,
            rows,
            left_out: Vec::new(),
            notes: vec![(SENTENCES, numbers)],
        })
    });
    plans.collect()
}

/// The statements of a pair of pictures.
struct Pair {
    place: Place,
    id: String,
    folder: PathBuf,
    sentences: Vec<String>,
    labels: Vec<String>,
    /// The official number of each sentence, the last part of its identifier.
    numbers: Vec<String>,
}

/// The rows, and the official numbers of sentences as the file notes them.
fn rows(raw: &Path, json: &Path) -> Result<(Vec<Row>, String)> {
    let path: Arc<Path> = json.into();
    let mut pairs: Vec<Pair> = Vec::new();
    let mut pair_of: HashMap<String, usize> = HashMap::new();
    let mut seen = HashSet::new();
    file::lines(json, |line, text| {
        if text.starts_with('[') {
            return Err("is a JSON list; a JSON object per line is expected".into());
        }
        let statement: Statement =
            serde_json::from_str(text).map_err(|error| format!("is no statement: {error}"))?;
        let Statement {
            identifier,
            sentence,
            label,
            directory,
        } = statement;
        if !matches!(label.as_str(), "True" | "False") {
            return Err(format!("the label {} is not True or False", shown(&label)));
        }
        let parts = identifier.rsplit_once('-').zip(identifier.split_once('-'));
        let Some(((id, sentence_number), (split, _))) = parts else {
            return Err(format!(
                "the identifier {} is not like dev-0-0-0",
                shown(&identifier)
            ));
        };
        let place = Place {
            file: Arc::clone(&path),
            row: line - 1,
        };
        let safe = |name: &str| {
            place
                .check_name(name)
                .map_err(|_| format!("{} is no name", shown(name)))
        };
        safe(id)?;
        safe(split)?;
        let folder = match directory {
            None if split == "train" => return Err("has no `directory`".into()),
            None => raw.join(split),
            Some(directory) => {
                let name = match directory {
                    Directory::Number(number) => number.to_string(),
                    Directory::Name(name) => name,
                };
                safe(&name)?;
                raw.join("images/train").join(name)
            }
        };
        let (id, sentence_number) = (id.to_owned(), sentence_number.to_owned());
        let number = *pair_of.entry(id.clone()).or_insert(pairs.len());
        if number == pairs.len() {
            pairs.push(Pair {
                place,
                id,
                folder,
                sentences: Vec::new(),
                labels: Vec::new(),
                numbers: Vec::new(),
            });
        } else if pairs[number].folder != folder {
            return Err(format!("{id} has its pictures elsewhere on another line"));
        }
        if !seen.insert(identifier.clone()) {
            return Err(format!("{identifier} was on a line before"));
        }
        pairs[number].sentences.push(sentence);
        pairs[number].labels.push(label);
        pairs[number].numbers.push(sentence_number);
        Ok(())
    })?;
    if pairs.is_empty() {
        return Err(Error::Empty {
            path: json.into(),
            what: "statements",
        });
    }
    let numbers = pairs
        .iter()
        .map(|pair| (pair.id.as_str(), &pair.numbers[..]));
    let numbers = SentenceNumbers::note(numbers);
    let rows = pairs.into_iter().map(|pair| Row {
        place: pair.place,
        pictures: [0, 1]
            .map(|side| Picture::file(pair.folder.join(format!("{}-img{side}.png", pair.id))))
            .to_vec(),
        cells: vec![
            Cell::Texts(pair.sentences),
            Cell::Texts(pair.labels),
            Cell::Text(pair.id),
        ],
    });
    Ok((rows.collect(), numbers))
}
