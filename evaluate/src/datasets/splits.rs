//! The files of a split, and the rows of several tables as one.

use std::path::{Path, PathBuf};

use super::left_out::{self, Omission};
use super::packed::Packed;
use super::rows::Table;
use super::xvlm::JsonFiles;
use super::{DatasetSpec, Kind, Split};
use crate::{DataFault, Error, Result};

/// Another spelling of file names, that of published programs which store pictures at 224 pixels.
const OTHER_PREFIX: &str = "code224_";

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

    /// Opens the tables of the split, or finds its JSON files where none of its tables is there.
    pub(super) fn open(&self, folder: &Path, dataset: &DatasetSpec) -> Result<Opened> {
        let files = match self.files(folder) {
            Ok(files) => files,
            Err(error) => {
                let has_table = self.tables.iter().any(|table| {
                    let first = table.replace("{}", "0");
                    file(folder, &first).is_some()
                });
                if has_table {
                    return Err(error);
                }
                let json = JsonFiles::find(folder, dataset, self)?;
                return json
                    .map(Opened::Json)
                    .ok_or_else(|| self.missing(error, dataset));
            }
        };
        if files.is_empty() {
            let names = format!("files of the split {}", self.name);
            let folder = folder.into();
            return Err(Error::Data(DataFault::MissingTable { folder, names }));
        }
        let tables = files.iter().map(|file| Table::open(file));
        let tables: Vec<Table> = tables.collect::<Result<_>>()?;
        Ok(Opened::Tables(Tables::new(tables)))
    }

    /// All files that hold the split or say something of it: arrow files, or else JSON files; none where there
    /// are no such.
    #[must_use]
    pub fn any_files(&self, folder: &Path, dataset: &DatasetSpec) -> Vec<PathBuf> {
        match self.files(folder) {
            Ok(files) if !files.is_empty() => files,
            _ => match JsonFiles::find(folder, dataset, self) {
                Ok(Some(json)) => json.all(),
                _ => Vec::new(),
            },
        }
    }

    /// The error of a missing table, with the JSON files that would do, or the splits that have such.
    fn missing(&self, error: Error, dataset: &DatasetSpec) -> Error {
        let (folder, names) = match error {
            Error::Data(DataFault::MissingTable { folder, names }) => (folder, names),
            error => return error,
        };
        let others = dataset.splits.iter().filter(|split| {
            let json = JsonFiles::find(&folder, dataset, split);
            json.is_ok_and(|json| json.is_some())
        });
        let others: Vec<&str> = others.map(|split| split.name).collect();
        let names = match self.json.first().and_then(|names| names.first()) {
            Some(json) => format!("{names} nor {json}"),
            None if others.is_empty() => names,
            None => format!(
                "{names}, but JSON files of the splits {}",
                others.join(", ")
            ),
        };
        Error::Data(DataFault::MissingTable { folder, names })
    }
}

/// Opens a split of a data set of a kind: its arrow or JSON files, or else packed files in the folder of its name.
pub(super) fn open(folder: &Path, name: &str, kind: Kind, split: &str) -> Result<Opened> {
    let set = DatasetSpec::find(name, kind);
    let opened = match &set {
        Ok(set) => set.split(split).and_then(|split| split.open(folder, set)),
        Err(_) => DatasetSpec::find(name, kind).map(|_| Opened::Tables(Tables::new(Vec::new()))),
    };
    let error = match opened {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let is_elsewhere = matches!(
        error,
        Error::Data(
            DataFault::MissingTable { .. }
                | DataFault::UnknownDataset { .. }
                | DataFault::UnknownSplit { .. }
        )
    );
    if !is_elsewhere {
        return Err(error);
    }
    let aliases = set.as_ref().map_or(&[][..], |set| set.aliases);
    for name in [name].iter().chain(aliases) {
        if let Some(packed) = Packed::find(folder, name, split)? {
            return Ok(Opened::Tables(Tables::of_packed(&packed)?));
        }
    }
    Err(error)
}

fn file(folder: &Path, table: &str) -> Option<PathBuf> {
    let spellings = ["", OTHER_PREFIX].map(|prefix| format!("{prefix}{table}.arrow"));
    let mut paths = spellings.iter().map(|name| folder.join(name));
    paths.find(|path| path.exists())
}

/// The number of numbered files of this name in the folder.
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

/// The files of a split.
#[derive(Debug)]
pub(super) enum Opened {
    /// Arrow, parquet or tar files.
    Tables(Tables),
    /// X-VLM's JSON files.
    Json(JsonFiles),
}

/// The rows of several tables as one.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Table>,
    ends: Vec<usize>,
    /// The rows that count, of all; `None` where all do.
    rows: Option<Vec<usize>>,
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
            rows: None,
        }
    }

    /// Opens the files of a split.
    pub(super) fn of_packed(packed: &Packed) -> Result<Self> {
        let (tables, rows) = packed.open()?;
        Ok(Self {
            rows,
            ..Self::new(tables)
        })
    }

    /// Without tables that have no rows, unless it is the only one.
    pub(super) fn without_empty(self) -> Self {
        match (self.tables.len(), &self.rows) {
            (2.., None) => {
                let filled = self.tables.into_iter();
                Self::new(filled.filter(|table| table.n_rows() > 0).collect())
            }
            _ => self,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    pub(super) fn n_rows(&self) -> usize {
        let all = self.ends.last().copied().unwrap_or(0);
        self.rows.as_ref().map_or(all, Vec::len)
    }

    /// Whether all tables have a column of this name, and there is a table.
    pub(super) fn all_have(&self, column: &str) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|table| table.has(column))
    }

    /// The values of the rows that count, of one for each row of all tables.
    pub(super) fn that_count<T>(&self, values: Vec<T>) -> Vec<T> {
        let Some(rows) = &self.rows else {
            return values;
        };
        let mut rows = rows.iter().peekable();
        let values = values.into_iter().enumerate();
        let kept = values.filter(|(index, _)| rows.next_if_eq(&index).is_some());
        kept.map(|(_, value)| value).collect()
    }

    /// The omissions that the tables note, and the members of shards that are passed over.
    pub(super) fn left_out(&self) -> Result<Vec<Omission>> {
        left_out::of_tables(self.iter())
    }

    /// The table that holds row `index` of those that count, and the row in it.
    pub(super) fn place(&self, index: usize) -> Option<(&Table, usize)> {
        let index = match &self.rows {
            Some(rows) => *rows.get(index)?,
            None => index,
        };
        let number = self.ends.partition_point(|&end| end <= index);
        let table = self.tables.get(number)?;
        Some((table, index + table.n_rows() - self.ends[number]))
    }

    /// An error at a row of those that count.
    pub(super) fn row_fault(&self, index: usize, fault: impl Into<String>) -> Error {
        match self.place(index) {
            Some((table, row)) => table.row_fault(row, fault),
            None => Error::Data(DataFault::NoSuchRow {
                row: index,
                n_rows: self.n_rows(),
            }),
        }
    }

    /// The bytes of a picture of row `index` of those that count.
    pub(super) fn bytes(&self, column: &str, index: usize) -> Result<Vec<u8>> {
        match self.place(index) {
            Some((table, row)) => table.bytes(column, row),
            None => Err(self.row_fault(index, "")),
        }
    }

    /// The decoded picture of row `index` of those that count; damage is reported with its file and row.
    pub(super) fn picture(&self, column: &str, index: usize) -> Result<crate::images::Rgb> {
        let bytes = self.bytes(column, index)?;
        crate::images::decode(&bytes)
            .map_err(|error| self.row_fault(index, format!("column `{column}`: {error}")))
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
