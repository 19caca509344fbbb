//! Conceptual Captions, Conceptual 12M and SBU: a list of pictures, each with its caption.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plan::{CAPTIONS, Cell, FLAT_CAPTIONS, Kind, Picture, Place, Row, TablePlan};
use super::{BuildOptions, chosen};
use crate::predictions::file;
use crate::{Error, Result};

/// The most rows of a file.
const MAX_ROWS: usize = 100_000;

/// One of the data sets.
pub(crate) struct Source {
    dataset: &'static str,
    /// Whether each caption has a row of its own, as in EVE's files, or each picture.
    is_flat: bool,
    /// Name of a split, its list, the folder of its pictures, the beginning of its files' names.
    splits: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

pub(crate) const CONCEPTUAL_CAPTIONS: Source = Source {
    dataset: "gcc",
    is_flat: false,
    splits: &[
        (
            "train",
            "train_annot.json",
            "images_train",
            "conceptual_caption_train_",
        ),
        (
            "val",
            "val_annot.json",
            "images_val",
            "conceptual_caption_val_",
        ),
    ],
};

pub(crate) const SBU: Source = Source {
    dataset: "sbu",
    is_flat: false,
    splits: &[("train", "annot.json", "images_train", "sbu_")],
};

pub(crate) const CC3M: Source = Source {
    dataset: "cc3m",
    is_flat: true,
    splits: &[("train", "train_annot.json", "images_train", "cc3m_")],
};

pub(crate) const CC12M: Source = Source {
    dataset: "cc12m",
    is_flat: true,
    splits: &[("train", "train_annot.json", "images_train", "cc12m_")],
};

/// Whether the files of a data set have a row for each caption.
pub(super) fn is_flat(dataset: &str) -> bool {
    let sources = [CONCEPTUAL_CAPTIONS, SBU, CC3M, CC12M];
    let mut sources = sources.iter();
    sources.any(|source| source.dataset == dataset && source.is_flat)
}

pub(crate) fn plan(source: &Source, options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let names: Vec<&str> = source.splits.iter().map(|split| split.0).collect();
    let wanted = chosen(source.dataset, &names, options)?;
    let mut plans = Vec::new();
    for (split, list, folder, table) in source.splits {
        if wanted.contains(split) {
            let (list, folder) = (options.raw.join(list), options.raw.join(folder));
            let (rows, columns) = match source.is_flat {
                true => (flat_rows(&list, &folder)?, FLAT_CAPTIONS.to_vec()),
                false => (rows(&list, &folder, split)?, CAPTIONS.to_vec()),
            };
            plans.extend(sliced(table, &columns, rows));
        }
    }
    Ok(plans)
}

/// Files of at most [`MAX_ROWS`] rows, the last of which may have fewer.
pub(super) fn sliced(
    table: &str,
    columns: &[(&'static str, Kind)],
    rows: Vec<Row>,
) -> Vec<TablePlan> {
    let slices = rows.chunks(MAX_ROWS).enumerate();
    let plans = slices.map(|(number, rows)| TablePlan {
        name: format!("{table}{number}"),
        columns: columns.to_vec(),
        is_pair: false,
        rows: rows.to_vec(),
        left_out: Vec::new(),
        notes: Vec::new(),
    });
    plans.collect()
}

/// A pair of a list.
struct Pair {
    place: Place,
    name: String,
    caption: String,
}

/// The pairs of a list, the names of pictures without their folders.
fn pairs(json: &Path) -> Result<impl Iterator<Item = Result<Pair>> + use<>> {
    let what = "a list of pairs of a path and a caption";
    let list: Vec<(String, String)> = file::json(json, what)?;
    let file: Arc<Path> = json.into();
    Ok(
        (list.into_iter().enumerate()).map(move |(row, (path, caption))| {
            let place = Place {
                file: Arc::clone(&file),
                row,
            };
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            place.check_name(&name)?;
            Ok(Pair {
                place,
                name,
                caption,
            })
        }),
    )
}

/// A row for each caption.
fn flat_rows(json: &Path, folder: &Path) -> Result<Vec<Row>> {
    let paths = pictures(folder)?;
    let rows = pairs(json)?.map(|pair| {
        let Pair {
            place,
            name,
            caption,
        } = pair?;
        let path = paths.get(&name).cloned();
        Ok(Row {
            place,
            pictures: vec![Picture::file(path.unwrap_or_else(|| folder.join(&name)))],
            cells: vec![Cell::Text(caption), Cell::Text(name)],
        })
    });
    let rows: Vec<Row> = rows.collect::<Result<_>>()?;
    match rows.is_empty() {
        true => Err(Error::Empty {
            path: json.into(),
            what: "captions",
        }),
        false => Ok(rows),
    }
}

fn rows(json: &Path, folder: &Path, split: &str) -> Result<Vec<Row>> {
    let paths = pictures(folder)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut row_of: HashMap<String, usize> = HashMap::new();
    for pair in pairs(json)? {
        let Pair {
            place,
            name,
            caption,
        } = pair?;
        if let Some(&row) = row_of.get(&name) {
            if let Some(Cell::Texts(captions)) = rows[row].cells.first_mut() {
                captions.push(caption);
            }
            continue;
        }
        row_of.insert(name.clone(), rows.len());
        // A picture that is not there is found bad when it is read.
        let path = paths
            .get(&name)
            .cloned()
            .unwrap_or_else(|| folder.join(&name));
        rows.push(Row {
            place,
            pictures: vec![Picture::file(path)],
            cells: vec![
                Cell::Texts(vec![caption]),
                Cell::Text(name),
                Cell::Text(split.to_owned()),
            ],
        });
    }
    if rows.is_empty() {
        return Err(Error::Empty {
            path: json.into(),
            what: "captions",
        });
    }
    Ok(rows)
}

/// The pictures in the folders of a folder, by name.
fn pictures(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut pictures: HashMap<String, PathBuf> = HashMap::new();
    for inner in entries(folder)? {
        if !inner.is_dir() {
            continue;
        }
        for path in entries(&inner)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(other) = pictures.insert(name.clone(), path) {
                return Err(Error::DuplicateId {
                    path: other,
                    what: "picture",
                    id: name,
                });
            }
        }
    }
    Ok(pictures)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::io("list", folder, source);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    entries
        .map(|entry| Ok(entry.map_err(failed)?.path()))
        .collect()
}
