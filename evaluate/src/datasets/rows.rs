//! A file of rows: arrow, parquet, or a shard of a webdataset.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::arrow::{self, Value};
use super::left_out::Omission;
use super::parquet::{ColumnKind, ParquetTable};
use super::shard::Shard;
use crate::{DataFault, Error, Result};

/// A file of rows with columns, such as `image` and `caption`.
#[derive(Debug)]
pub(super) enum Table {
    Arrow(arrow::Table),
    Parquet(ParquetTable),
    Shard(Shard),
}

impl Table {
    /// Opens an arrow file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self::Arrow(arrow::Table::open(path)?))
    }

    /// Closes a packed file until it is read again.
    pub(super) fn close(&mut self) {
        match self {
            Self::Arrow(_) => {}
            Self::Parquet(table) => table.close(),
            Self::Shard(shard) => shard.close(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Arrow(table) => table.path(),
            Self::Parquet(table) => table.path(),
            Self::Shard(shard) => shard.path(),
        }
    }

    pub(super) fn n_rows(&self) -> usize {
        match self {
            Self::Arrow(table) => table.n_rows(),
            Self::Parquet(table) => table.n_rows(),
            Self::Shard(shard) => shard.n_rows(),
        }
    }

    /// Whether there is a column of this name, or one that stands for it.
    pub(super) fn has(&self, column: &str) -> bool {
        match self {
            Self::Arrow(table) => table.has(column),
            Self::Parquet(table) => table.has(column),
            Self::Shard(shard) => shard.has(column),
        }
    }

    /// A note of the writer that is JSON; `None` if there is none under this key.
    pub(super) fn note<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let notes = match self {
            Self::Arrow(table) => return table.note(key),
            Self::Parquet(table) => table.notes(),
            Self::Shard(_) => return Ok(None),
        };
        let read = notes.get(key).map(|note| serde_json::from_str(note));
        read.transpose()
            .map_err(|error| self.fault(format!("its note `{key}` is damaged: {error}")))
    }

    pub(super) fn fault(&self, fault: impl Into<String>) -> Error {
        let (path, fault) = (self.path().to_owned(), fault.into());
        Error::Data(match self {
            Self::Arrow(_) => DataFault::Arrow { path, fault },
            Self::Parquet(_) => DataFault::Parquet { path, fault },
            Self::Shard(_) => DataFault::Shard { path, fault },
        })
    }

    /// An error at a row.
    pub(super) fn row_fault(&self, row: usize, fault: impl Into<String>) -> Error {
        let fault = fault.into();
        match self {
            Self::Shard(shard) => shard.row_fault(row, &fault),
            _ => Error::Data(DataFault::Row {
                path: self.path().into(),
                row,
                fault,
            }),
        }
    }

    /// A column of text or numbers, or of lists of them.
    pub(super) fn column<T: Value>(&self, name: &str) -> Result<Vec<T>> {
        match self {
            Self::Arrow(table) => table.column(name),
            Self::Parquet(table) => table.column(name),
            Self::Shard(shard) => Err(Error::Data(DataFault::MissingColumn {
                path: shard.path().into(),
                column: name.into(),
                found: "image, image_id, caption or label".into(),
            })),
        }
    }

    /// A column of lists of text, or of one text a row.
    pub(super) fn text_lists(&self, name: &str) -> Result<Vec<Vec<String>>> {
        match self {
            Self::Arrow(table) => table.text_lists(name),
            Self::Parquet(table) if table.is_of(name, ColumnKind::Texts) => {
                let texts: Vec<String> = table.column(name)?;
                Ok(texts.into_iter().map(|text| vec![text]).collect())
            }
            Self::Parquet(table) => table.column(name),
            Self::Shard(shard) => Ok(shard.captions()),
        }
    }

    /// A column of text or whole numbers, as text.
    pub(super) fn ids(&self, name: &str) -> Result<Vec<String>> {
        match self {
            Self::Arrow(table) => table.ids(name),
            Self::Parquet(table) if table.is_of(name, ColumnKind::Integers) => {
                let ids: Vec<i64> = table.column(name)?;
                Ok(ids.iter().map(ToString::to_string).collect())
            }
            Self::Parquet(table) => table.column(name),
            Self::Shard(shard) => Ok(shard.keys().map(str::to_owned).collect()),
        }
    }

    /// The class of each row, by number.
    pub(super) fn labels(&self) -> Result<Vec<i64>> {
        match self {
            Self::Shard(shard) => shard.classes(),
            _ => self.column("label"),
        }
    }

    /// The names of the classes, where the file has them.
    pub(super) fn class_names(&self) -> Result<Option<Vec<String>>> {
        match self {
            Self::Parquet(table) => table.class_names(),
            _ => Ok(None),
        }
    }

    /// Members of a shard with endings that are none of a picture, a class or a text.
    pub(super) fn passed_over(&self) -> Option<Omission> {
        let Self::Shard(shard) = self else {
            return None;
        };
        let n = shard.n_others();
        (n > 0).then(|| Omission {
            what: "members".into(),
            why: "no ending of a picture, a class or a text".into(),
            n,
            of: n + shard.n_members(),
            ids: Vec::new(),
            file: String::new(),
        })
    }

    /// The bytes of a picture.
    pub(super) fn bytes(&self, column: &str, row: usize) -> Result<Vec<u8>> {
        match self {
            Self::Arrow(table) => table.bytes(column, row),
            Self::Parquet(table) => table.bytes(column, row),
            Self::Shard(shard) => shard.bytes(row),
        }
    }
}
