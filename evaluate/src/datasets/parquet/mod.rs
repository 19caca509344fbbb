//! Parquet files as data sets on the hub are kept: pictures in a struct of `bytes` and `path`, labels, texts.
//!
//! The footer and the headers of pages are read by our own code, which believes nothing that they say: memory follows
//! the bytes that are there. A picture is read with its page, and the last pages are kept.
//!
//! Specification: <https://parquet.apache.org/docs/file-format/>.

mod cells;
mod columns;
mod dictionary;
mod features;
mod footer;
mod hybrid;
mod kept;
mod lists;
mod pages;
mod thrift;
mod unfold;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::packed::PackedFile;
use crate::{DataFault, Error, Result};
use cells::{ChunkKey, Decoded, PageKey, Pages};
use dictionary::Dictionary;
use footer::{Footer, Leaf, Physical};
use kept::Kept;

/// The mark at the beginning and at the end of a file.
const MAGIC: &[u8; 4] = b"PAR1";

/// The largest footer: some fifty thousand row groups of five columns.
const MAX_FOOTER_BYTES: u64 = 16 << 20;

/// A parquet file.
#[derive(Debug)]
pub struct ParquetTable {
    file: PackedFile,
    footer: Footer,
    /// Rows up to and with each group.
    ends: Vec<usize>,
    /// The columns, and the leaves of each.
    columns: BTreeMap<String, Vec<usize>>,
    pages: Mutex<BTreeMap<ChunkKey, Arc<Pages>>>,
    kept_pages: Kept<PageKey, Decoded>,
    kept_dictionaries: Kept<ChunkKey, Dictionary>,
}

/// The values that a column may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Integers,
    Texts,
}

impl ParquetTable {
    /// Opens a file by its path or address, and reads its footer.
    ///
    /// # Errors
    /// [`DataFault::Parquet`] when it is damaged, truncated or of a kind that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let fault = |fault: String| {
            Error::Data(DataFault::Parquet {
                path: path.into(),
                fault,
            })
        };
        let file = PackedFile::open(path)?;
        let n_bytes = file.n_bytes();
        let start = file.read(0..n_bytes.min(64))?;
        merge::io::require_fetched(path, &start)?;
        if start.starts_with(b"PARE") {
            return Err(fault("it is encrypted".into()));
        }
        if n_bytes < 12 || !start.starts_with(MAGIC) {
            return Err(fault("it does not begin as one".into()));
        }
        let tail = file.read(n_bytes - 8..n_bytes)?;
        let (length, magic) = tail.split_at(4);
        if magic != MAGIC {
            let cut = "it does not end as one: truncated, or still being written";
            return Err(fault(cut.into()));
        }
        let length = length.first_chunk::<4>().copied().unwrap_or_default();
        let length = u64::from(u32::from_le_bytes(length));
        if length > n_bytes - 12 {
            return Err(fault("its footer has an impossible length".into()));
        }
        if length > MAX_FOOTER_BYTES {
            let n = MAX_FOOTER_BYTES;
            return Err(fault(format!(
                "its footer has {length} bytes; at most {n} are read"
            )));
        }
        let footer = file.read(n_bytes - 8 - length..n_bytes - 8)?;
        let footer = Footer::read(&footer, n_bytes).map_err(fault)?;
        let mut n_rows = 0;
        let ends = footer.groups.iter().map(|group| {
            n_rows += group.n_rows;
            n_rows
        });
        let mut columns: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, leaf) in footer.leaves.iter().enumerate() {
            columns
                .entry(leaf.column().to_owned())
                .or_default()
                .push(index);
        }
        Ok(Self {
            ends: ends.collect(),
            file,
            footer,
            columns,
            pages: Mutex::default(),
            kept_pages: Kept::default(),
            kept_dictionaries: Kept::default(),
        })
    }

    /// Closes the file until it is read again.
    pub(super) fn close(&mut self) {
        self.file.close();
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The writer's notes about the file, by key.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.footer.notes
    }

    /// Whether there is a column of this name, or one that stands for it (see [`super::packed`]).
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        self.name_of(column).is_some()
    }

    pub(super) fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Parquet {
            path: self.path().into(),
            fault: fault.into(),
        })
    }

    /// The columns of the table, each once.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for leaf in &self.footer.leaves {
            let name = leaf.column();
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        names
    }

    fn leaves_of(&self, name: &str) -> impl Iterator<Item = (usize, &Leaf)> {
        let indices = self.columns.get(name).map_or(&[][..], Vec::as_slice);
        indices
            .iter()
            .map(|&index| (index, &self.footer.leaves[index]))
    }

    /// The leaf of a column that is no struct.
    fn only_leaf(&self, name: &str) -> Option<(usize, &Leaf)> {
        let mut leaves = self.leaves_of(name);
        let first = leaves.next()?;
        // A list is three groups deep in the new spelling, two in the old.
        let is_plain = first.1.path.len() == 1 || !first.1.lists.is_empty();
        (leaves.next().is_none() && is_plain).then_some(first)
    }

    /// The leaf of a column of bytes: of itself, or of the field `bytes` of a struct.
    fn bytes_leaf(&self, name: &str) -> Option<usize> {
        let mut leaves = self.leaves_of(name);
        let found = leaves.find(|(_, leaf)| {
            let is_bytes = match leaf.path.get(1) {
                None => true,
                Some(inner) => &**inner == "bytes" && leaf.path.len() == 2,
            };
            is_bytes && leaf.physical == Physical::Bytes && leaf.lists.is_empty()
        });
        found.map(|(index, _)| index)
    }

    fn missing(&self, column: &str) -> Error {
        Error::Data(DataFault::MissingColumn {
            path: self.path().into(),
            column: column.into(),
            found: self.names().join(", "),
        })
    }

    fn other_type(&self, name: &str, expected: &'static str) -> Error {
        let leaves: Vec<String> = (self.leaves_of(name))
            .map(|(_, leaf)| leaf.describe())
            .collect();
        let found = match self.only_leaf(name) {
            Some((_, leaf)) => leaf.describe(),
            None => format!("struct<{}>", leaves.join(", ")),
        };
        Error::Data(DataFault::ColumnType {
            path: self.path().into(),
            column: name.into(),
            found,
            expected,
        })
    }
}
