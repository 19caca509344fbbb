//! Which files make up a split: one table.

use std::path::{Path, PathBuf};

use super::arrow::Table;
use crate::{DataFault, Error, Result};

/// Another spelling of file names, that of published programs which store pictures at 224 pixels.
const OTHER_PREFIX: &str = "code224_";

/// What the rows of a data set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image with its captions.
    Captions,
    /// An image with its questions and answers.
    Questions,
    /// A pair of images with statements about it.
    Statements,
    /// Texts without an image.
    Texts,
}

/// A split and the files that hold it.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Its name.
    pub name: &'static str,
    /// Names of files without their ending. A `{}` stands for a number, from 0: as many as
    /// follow one another.
    pub tables: &'static [&'static str],
}

/// A data set: one line in the table of all.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// Its name.
    pub name: &'static str,
    /// What its rows are.
    pub kind: Kind,
    /// Its splits.
    pub splits: &'static [Split],
}

const fn split(name: &'static str, tables: &'static [&'static str]) -> Split {
    Split { name, tables }
}

/// Every data set that is known by name. `published_train` and the like are the splits of the
/// published program where it departs from what the names say: its Flickr30K trains on the
/// validation images too, and validates on the test images.
pub const DATASETS: &[Dataset] = &[
    Dataset {
        name: "coco",
        kind: Kind::Captions,
        splits: &[
            split("train", &["coco_caption_karpathy_train"]),
            split(
                "train+restval",
                &[
                    "coco_caption_karpathy_train",
                    "coco_caption_karpathy_restval",
                ],
            ),
            split("restval", &["coco_caption_karpathy_restval"]),
            split("val", &["coco_caption_karpathy_val"]),
            split("test", &["coco_caption_karpathy_test"]),
        ],
    },
    Dataset {
        name: "f30k",
        kind: Kind::Captions,
        splits: &[
            split("train", &["f30k_caption_karpathy_train"]),
            split(
                "published_train",
                &["f30k_caption_karpathy_train", "f30k_caption_karpathy_val"],
            ),
            split("val", &["f30k_caption_karpathy_val"]),
            split("published_val", &["f30k_caption_karpathy_test"]),
            split("test", &["f30k_caption_karpathy_test"]),
        ],
    },
    Dataset {
        name: "gcc",
        kind: Kind::Captions,
        splits: &[
            split("train", &["conceptual_caption_train_{}"]),
            split("val", &["conceptual_caption_val_{}"]),
        ],
    },
    Dataset {
        name: "sbu",
        kind: Kind::Captions,
        splits: &[split("train", &["sbu_{}"])],
    },
    Dataset {
        name: "vg",
        kind: Kind::Captions,
        splits: &[split("train", &["vg"])],
    },
    Dataset {
        name: "vqa",
        kind: Kind::Questions,
        splits: &[
            split("train", &["vqav2_train"]),
            split("train+val", &["vqav2_train", "vqav2_trainable_val"]),
            split("val", &["vqav2_val"]),
            split("trainable_val", &["vqav2_trainable_val"]),
            split("rest_val", &["vqav2_rest_val"]),
            split("test", &["vqav2_test"]),
            split("test-dev", &["vqav2_test-dev"]),
        ],
    },
    Dataset {
        name: "nlvr2",
        kind: Kind::Statements,
        splits: &[
            split("train", &["nlvr2_train"]),
            split("dev", &["nlvr2_dev"]),
            split("test1", &["nlvr2_test1"]),
            split("balanced_dev", &["nlvr2_balanced_dev"]),
            split("balanced_test1", &["nlvr2_balanced_test1"]),
            split("unbalanced_dev", &["nlvr2_unbalanced_dev"]),
            split("unbalanced_test1", &["nlvr2_unbalanced_test1"]),
        ],
    },
    Dataset {
        name: "wikibk",
        kind: Kind::Texts,
        splits: &[
            split("train", &["wikibk_train_{}"]),
            split("val", &["wikibk_val_{}"]),
        ],
    },
];

impl Dataset {
    /// The data set of this name and kind.
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`] when there is none.
    pub fn find(name: &str, kind: Kind) -> Result<&'static Self> {
        let of_kind = || DATASETS.iter().filter(|dataset| dataset.kind == kind);
        let found = of_kind().find(|dataset| dataset.name == name);
        found.ok_or_else(|| {
            Error::Data(DataFault::UnknownDataset {
                name: name.into(),
                known: listed(of_kind().map(|dataset| dataset.name)),
            })
        })
    }

    /// The split of this name.
    ///
    /// # Errors
    /// [`DataFault::UnknownSplit`] when there is none.
    pub fn split(&self, name: &str) -> Result<&'static Split> {
        let found = self.splits.iter().find(|split| split.name == name);
        found.ok_or_else(|| {
            Error::Data(DataFault::UnknownSplit {
                dataset: self.name,
                name: name.into(),
                known: listed(self.splits.iter().map(|split| split.name)),
            })
        })
    }
}

impl Split {
    /// The files of the split in a folder, in both spellings of names.
    ///
    /// # Errors
    /// [`DataFault::MissingTable`] when one is not there.
    pub fn files(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for table in self.tables {
            if !table.contains("{}") {
                files.push(file(folder, table).ok_or_else(|| missing(folder, table))?);
                continue;
            }
            let of_number = |number: usize| file(folder, &table.replace("{}", &number.to_string()));
            let first = of_number(0).ok_or_else(|| missing(folder, &table.replace("{}", "0")))?;
            files.push(first);
            files.extend((1..).map_while(of_number));
            let n_here = count(folder, table)?;
            let n_found = files.len();
            if self.tables.len() == 1 && n_here > n_found {
                // A hole in the numbers would make the data set silently smaller.
                return Err(missing(folder, &table.replace("{}", &n_found.to_string())));
            }
        }
        Ok(files)
    }

    /// Opens the tables of the split.
    pub(super) fn open(&self, folder: &Path) -> Result<Vec<Table>> {
        let files = self.files(folder)?;
        files.iter().map(|file| Table::open(file)).collect()
    }
}

fn file(folder: &Path, table: &str) -> Option<PathBuf> {
    let spellings = ["", OTHER_PREFIX].map(|prefix| format!("{prefix}{table}.arrow"));
    let mut paths = spellings.iter().map(|name| folder.join(name));
    paths.find(|path| path.exists())
}

/// How many numbered files of this name are in the folder.
fn count(folder: &Path, table: &str) -> Result<usize> {
    let (before, after) = table.split_once("{}").unwrap_or((table, ""));
    let mut numbers = std::collections::HashSet::new();
    let failed = |source| Error::io("list", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        let name = name.strip_prefix(OTHER_PREFIX).unwrap_or(&name);
        let number = name.strip_suffix(".arrow");
        let number = number.and_then(|name| name.strip_prefix(before)?.strip_suffix(after));
        numbers.extend(number.and_then(|number| number.parse::<usize>().ok()));
    }
    Ok(numbers.len())
}

fn missing(folder: &Path, table: &str) -> Error {
    Error::Data(DataFault::MissingTable {
        folder: folder.into(),
        names: format!("{table}.arrow nor {OTHER_PREFIX}{table}.arrow"),
    })
}

fn listed(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// The rows of several tables as one.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Table>,
    ends: Vec<usize>,
}

impl Tables {
    pub(super) fn new(tables: Vec<Table>) -> Self {
        let mut end = 0;
        let ends = tables.iter().map(|table| {
            end += table.n_rows();
            end
        });
        Self {
            ends: ends.collect(),
            tables,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    pub(super) fn n_rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The table that holds row `index` of all, and the row in it.
    pub(super) fn place(&self, index: usize) -> Option<(&Table, usize)> {
        let number = self.ends.partition_point(|&end| end <= index);
        let table = self.tables.get(number)?;
        Some((table, index + table.n_rows() - self.ends[number]))
    }

    /// The bytes of a picture of row `index` of all.
    pub(super) fn bytes(&self, column: &str, index: usize) -> Result<Vec<u8>> {
        match self.place(index) {
            Some((table, row)) => table.bytes(column, row),
            None => Err(Error::Data(DataFault::NoSuchRow {
                row: index,
                n_rows: self.n_rows(),
            })),
        }
    }

    /// The decoded picture of row `index` of all; damage is reported with its file and row.
    pub(super) fn picture(&self, column: &str, index: usize) -> Result<crate::images::Rgb> {
        let bytes = self.bytes(column, index)?;
        crate::images::decode(&bytes).map_err(|error| match self.place(index) {
            Some((table, row)) => table.row_fault(row, format!("column `{column}`: {error}")),
            None => error,
        })
    }

    /// Refuses a split without rows.
    pub(super) fn check_rows(&self, what: &'static str) -> Result<()> {
        match self.tables.first() {
            Some(table) if self.n_rows() == 0 => Err(Error::Empty {
                path: table.path().into(),
                what,
            }),
            _ => Ok(()),
        }
    }
}
