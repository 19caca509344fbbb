//! Data sets that are packed into few files: shards of webdatasets, and parquet files as the hub keeps them.
//!
//! `<folder>/<data set>` is looked through for a split, in this order:
//!
//! | files | layout |
//! |---|---|
//! | `SPLIT/0.tar` to as many as `SPLIT/nshards.txt` says | clip_benchmark's; `classnames.txt`, `dataset_type.txt` beside |
//! | `SPLIT/*.tar` | shards of any names, numbers in their order |
//! | `SPLIT/*.parquet` | the hub's conversions |
//! | `data/SPLIT-00000-of-00003.parquet`, or the same in the folder | the hub's; all parts must be there |
//! | `SPLIT-000000.tar`, `SPLIT.tar` | shards |
//! | all parquet files, with the split in a column `split` | Flickr30K on the hub |
//!
//! A split may also name its files: `shard-{000000..000012}.tar`. A folder may be an address: `hf://datasets/org`,
//! `s3://bucket/prefix`; web servers list no folders, so that `https://` needs `nshards.txt` or a split that names
//! its files.

mod file;
mod names;

use std::path::{Path, PathBuf};

use merge::io::{FileBytes, files_in};
use merge::remote::address::is_address;
use rayon::prelude::*;

use super::facts::FileFacts;
use super::parquet::ParquetTable;
use super::pictures::is_inside;
use super::rows::Table;
use super::shard::{Captions, Shard};
use crate::{DataFault, Error, Result};
pub(super) use file::PackedFile;

/// The file in which clip_benchmark notes the number of a split's shards.
const N_SHARDS: &str = "nshards.txt";

/// The file in which clip_benchmark notes the task of a set.
const TYPE: &str = "dataset_type.txt";

/// The names of the classes, a line each, as clip_benchmark notes them.
pub const CLASS_NAMES: &str = "classnames.txt";

/// The most bytes of such a file.
const MAX_NOTE_BYTES: u64 = 16 << 20;

/// The most files of a split that stay open.
const MAX_OPEN: usize = 256;

/// The most shards of a split.
const MAX_SHARDS: usize = 1 << 17;

/// The form of a split's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Shards,
    Parquet,
}

/// The files of a split, in their order.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The folder of the data set.
    folder: PathBuf,
    split: String,
    form: Form,
    files: Vec<PathBuf>,
    /// Whether rows of other splits are in them.
    is_mixed: bool,
}

impl Packed {
    /// The files of a split of a data set in a folder; `None` where there are none.
    ///
    /// # Errors
    /// When a folder cannot be listed, a pattern is none, or a part of the split is not there.
    pub fn find(folder: &Path, dataset: &str, split: &str) -> Result<Option<Self>> {
        let outside = [dataset, split].into_iter().find(|name| !is_inside(name));
        if let Some(name) = outside {
            return Err(Error::Data(DataFault::DatasetName { name: name.into() }));
        }
        Self::in_folder(&folder.join(dataset), split)
    }

    /// The files of a split of the data set in this folder.
    ///
    /// # Errors
    /// As [`find`](Self::find)'s.
    pub fn in_folder(folder: &Path, split: &str) -> Result<Option<Self>> {
        let found = |form: Form, files: Vec<PathBuf>, is_mixed: bool| {
            Some(Self {
                folder: folder.into(),
                split: split.into(),
                form,
                files,
                is_mixed,
            })
        };
        let form_of = |name: &str| match name.rsplit('.').next() {
            Some("tar") => Some(Form::Shards),
            Some("parquet") => Some(Form::Parquet),
            _ => None,
        };
        if let Some(form) = form_of(split) {
            let files = names::expanded(split).ok_or_else(|| {
                let fault = format!(
                    "{split:?} is no pattern of names; write {{000..012}} or {{a,b}}, once or several times"
                );
                Error::Data(DataFault::Packed {
                    path: folder.into(),
                    fault,
                })
            })?;
            let files = files.iter().map(|name| folder.join(name));
            return Ok(found(form, files.collect(), false));
        }
        let inner = folder.join(split);
        if let Some(n) = n_shards(&inner)? {
            let files = (0..n).map(|number| inner.join(format!("{number}.tar")));
            return Ok(found(Form::Shards, files.collect(), false));
        }
        let in_split = listed(&inner)?;
        for form in [Form::Shards, Form::Parquet] {
            let of_form = |(name, path): &(String, PathBuf)| {
                (form_of(name) == Some(form)).then(|| path.clone())
            };
            let files: Vec<PathBuf> = in_split.iter().filter_map(of_form).collect();
            if !files.is_empty() {
                return Ok(found(form, files, false));
            }
        }
        let around = [listed(&folder.join("data"))?, listed(folder)?];
        for (form, ending) in [(Form::Parquet, ".parquet"), (Form::Shards, ".tar")] {
            for files in &around {
                let files = parts(files, split, ending, folder)?;
                if !files.is_empty() {
                    return Ok(found(form, files, false));
                }
            }
        }
        for files in around {
            let files = files.into_iter();
            let files = files.filter(|(name, _)| form_of(name) == Some(Form::Parquet));
            let files: Vec<PathBuf> = files.map(|(_, path)| path).collect();
            if let Some(first) = files.first()
                && ParquetTable::open(first)?.has("split")
            {
                return Ok(found(Form::Parquet, files, true));
            }
        }
        Ok(None)
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The folder of the data set.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Facts about each file: what tells this split from another.
    ///
    /// # Errors
    /// When a file is gone.
    pub fn facts(&self) -> Result<Vec<FileFacts>> {
        let files = self.files.iter().map(|path| {
            let inside = path.strip_prefix(&self.folder).unwrap_or(path);
            (inside.display().to_string(), path.clone())
        });
        FileFacts::of_all(files.collect())
    }

    /// Opens all files, on all threads. With the rows of a split where the files have those of others as well: a column
    /// `split` that names it.
    pub(super) fn open(&self) -> Result<(Vec<Table>, Option<Vec<usize>>)> {
        let captions = match self.form {
            Form::Parquet => Captions::Whole,
            Form::Shards => match note(&self.folder.join(TYPE))?.as_deref().map(str::trim) {
                Some("retrieval") => Captions::Lines,
                Some("multilabel") => {
                    let fault =
                        format!("{TYPE} says `multilabel`: images of several classes are not read");
                    return Err(Error::Data(DataFault::Packed {
                        path: self.folder.clone(),
                        fault,
                    }));
                }
                _ => Captions::Whole,
            },
        };
        let tables = self.files.par_iter().map(|path| {
            let mut table = match self.form {
                Form::Shards => Table::Shard(Shard::open(path, captions)?),
                Form::Parquet => Table::Parquet(ParquetTable::open(path)?),
            };
            if self.files.len() > MAX_OPEN {
                table.close();
            }
            Ok(table)
        });
        // The first fault in the order of the files, whatever thread comes to it first.
        let tables: Vec<Result<Table>> = tables.collect();
        let tables: Vec<Table> = tables.into_iter().collect::<Result<_>>()?;
        let rows = self.rows_of_split(&tables)?;
        Ok((tables, rows))
    }

    fn rows_of_split(&self, tables: &[Table]) -> Result<Option<Vec<usize>>> {
        let has_splits =
            self.form == Form::Parquet && tables.iter().all(|table| table.has("split"));
        if !has_splits && !self.is_mixed {
            return Ok(None);
        }
        let (mut rows, mut n_rows) = (Vec::new(), 0);
        let mut others = std::collections::BTreeSet::new();
        for table in tables {
            for name in table.column::<String>("split")? {
                match name == self.split {
                    true => rows.push(n_rows),
                    false => {
                        others.insert(name);
                    }
                }
                n_rows += 1;
            }
        }
        if rows.is_empty() && self.is_mixed {
            let others: Vec<String> = others.into_iter().take(20).collect();
            let (split, others) = (&self.split, others.join(", "));
            return Err(Error::Data(DataFault::MissingTable {
                folder: self.folder.clone(),
                names: format!(
                    "{split}-*.parquet, and the column `split` of its files names: {others}"
                ),
            }));
        }
        Ok((!rows.is_empty() && rows.len() < n_rows).then_some(rows))
    }

    /// The names of the classes in `classnames.txt`, by number; `None` where there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is empty.
    pub fn class_names(&self) -> Result<Option<Vec<String>>> {
        class_names(&self.folder)
    }
}

/// The names of the classes in the `classnames.txt` of a data set, by number; `None` where there is no such file.
///
/// # Errors
/// When the file cannot be read, or a line is empty.
pub fn class_names(folder: &Path) -> Result<Option<Vec<String>>> {
    let path = folder.join(CLASS_NAMES);
    let Some(text) = note(&path)? else {
        return Ok(None);
    };
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    match names.iter().position(String::is_empty) {
        Some(index) => Err(Error::BadLine {
            path,
            line: index + 1,
            fault: "is empty; each line is the name of a class".into(),
        }),
        None => Ok(Some(names)),
    }
}

/// The files in a folder in their order; none where there is no folder.
fn listed(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !is_address(folder) && !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = files_in(folder)?;
    files.sort_by(|(a, _), (b, _)| names::in_order(a, b));
    Ok(files)
}

/// The parts of a split among files.
fn parts(
    files: &[(String, PathBuf)],
    split: &str,
    ending: &str,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let parts = files.iter().filter_map(|(name, path)| {
        let part = names::part_of(name, split, ending)?;
        Some((part, path))
    });
    let parts: Vec<_> = parts.collect();
    let n_parts = parts.iter().find_map(|(part, _)| part.map(|(_, n)| n));
    if let Some(n_parts) = n_parts {
        let have: Vec<usize> = (parts.iter())
            .filter_map(|(part, _)| part.map(|(number, _)| number))
            .collect();
        let hole = (0..n_parts).find(|number| !have.contains(number));
        if let Some(number) = hole {
            return Err(Error::Data(DataFault::MissingTable {
                folder: folder.into(),
                names: format!("{split}-{number:05}-of-{n_parts:05}{ending}, a part of the split"),
            }));
        }
        if have.len() != n_parts || parts.len() != n_parts {
            return Err(Error::Data(DataFault::Packed {
                path: folder.into(),
                fault: format!(
                    "it has {} files of the split {split}, of which {n_parts} make a whole",
                    parts.len()
                ),
            }));
        }
    }
    Ok(parts.into_iter().map(|(_, path)| path.clone()).collect())
}

/// The number of shards by `nshards.txt`; `None` if there is no such file.
fn n_shards(folder: &Path) -> Result<Option<usize>> {
    let path = folder.join(N_SHARDS);
    let Some(text) = note(&path)? else {
        return Ok(None);
    };
    let number = text.trim().parse().ok();
    let number = number.filter(|n| (1..=MAX_SHARDS).contains(n));
    match number {
        Some(n) => Ok(Some(n)),
        None => Err(Error::BadLine {
            path,
            line: 1,
            fault: format!("is no number of shards from 1 to {MAX_SHARDS}"),
        }),
    }
}

/// A small text beside a data set, here or by its address; `None` where there is none.
///
/// # Errors
/// When it cannot be read, is too large, or is no UTF-8.
pub fn note(path: &Path) -> Result<Option<String>> {
    let Some(file) = FileBytes::open_if_there(path)? else {
        return Ok(None);
    };
    if file.n_bytes() > MAX_NOTE_BYTES {
        return Err(Error::FileTooLarge {
            path: path.into(),
            n_bytes: file.n_bytes(),
            limit: MAX_NOTE_BYTES,
        });
    }
    let text = String::from_utf8(file.read(0..file.n_bytes())?);
    let text = text.map_err(|_| Error::BadLine {
        path: path.into(),
        line: 1,
        fault: "is not UTF-8".into(),
    })?;
    Ok(Some(text))
}
