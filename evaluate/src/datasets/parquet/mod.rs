//! Parquet files as data sets on the hub are kept: pictures in a struct of `bytes` and `path`, labels, texts.
//!
//! The footer and the headers of pages are read by our own code, which believes nothing that they say: memory follows
//! the bytes that are there. A picture is read with its page, and the last pages are kept.
//!
//! Specification: <https://parquet.apache.org/docs/file-format/>.

mod features;
mod footer;
mod hybrid;
mod lists;
mod pages;
mod thrift;
mod unfold;
mod values;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::arrow::{Column, Value};
use super::packed::PackedFile;
use crate::{DataFault, Error, Result};
use footer::{Footer, Group, Leaf, Physical};
use pages::{Body, Form, Page, Trouble};
use values::{DICTIONARY, PLAIN, Values};

/// What a file begins and ends with.
const MAGIC: &[u8; 4] = b"PAR1";

/// The largest footer: a hundred thousand row groups of ten columns.
const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// Bytes of decoded pages that are kept, unless a single one has more.
const KEPT_BYTES: usize = 64 << 20;

/// Texts of a column are at most so many times the bytes of the file: a dictionary makes much of little.
const MAX_REPEATS: u64 = 1024;

/// The most text of a column.
const MAX_TEXT_BYTES: u64 = 4 << 30;

/// A page of bytes, decoded.
#[derive(Debug)]
struct Decoded {
    bytes: Vec<u8>,
    dictionary: Option<Arc<Dictionary>>,
    /// Each value of the page: a range of its bytes, or a number of its dictionary; none of a null.
    values: Vec<Option<Found>>,
}

/// Where the bytes of a value are.
#[derive(Clone, Debug)]
enum Found {
    Here(std::ops::Range<usize>),
    InDictionary(u32),
}

/// What the pages of a chunk refer to.
#[derive(Debug)]
struct Dictionary {
    bytes: Vec<u8>,
    values: Values,
}

/// Which page: row group, leaf, page.
type Key = (usize, usize, usize);

/// The pages that were decoded last.
type Kept = VecDeque<(Key, Arc<Decoded>)>;

/// Pages with the row that each begins with.
type Pages = Vec<(usize, Page)>;

/// A parquet file.
#[derive(Debug)]
pub struct ParquetTable {
    file: PackedFile,
    footer: Footer,
    /// Rows up to and with each group.
    ends: Vec<usize>,
    /// Pages of a chunk, by row group and leaf.
    pages: Mutex<BTreeMap<(usize, usize), Arc<Pages>>>,
    kept: Mutex<Kept>,
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
        Ok(Self {
            ends: ends.collect(),
            file,
            footer,
            pages: Mutex::default(),
            kept: Mutex::default(),
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

    /// What the writer noted about the file, by key.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.footer.notes
    }

    /// Whether there is a column of this name, or one that stands for it (see [`super::packed`]).
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        self.name_of(column).is_some()
    }

    /// Whether a column is of whole numbers; of texts; of lists.
    pub(super) fn is_of(&self, column: &str, kind: ColumnKind) -> bool {
        let found = self.name_of(column).and_then(|name| self.only_leaf(name));
        found.is_some_and(|(_, leaf)| match kind {
            ColumnKind::Integers => {
                matches!(leaf.physical, Physical::Int32 | Physical::Int64) && leaf.lists.is_empty()
            }
            ColumnKind::Texts => leaf.is_text && leaf.lists.is_empty(),
        })
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
            let name = leaf.path.first().map_or("", String::as_str);
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        names
    }

    fn leaves_of(&self, name: &str) -> impl Iterator<Item = (usize, &Leaf)> {
        let leaves = self.footer.leaves.iter().enumerate();
        leaves.filter(move |(_, leaf)| leaf.path.first().is_some_and(|first| first == name))
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
                Some(inner) => inner == "bytes" && leaf.path.len() == 2,
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

    /// A column of text or numbers, or of lists of them.
    ///
    /// # Errors
    /// [`DataFault::MissingColumn`], [`DataFault::ColumnType`] when the column is of another type, [`DataFault::Row`]
    /// when a value is null, [`DataFault::Parquet`] when the file is damaged.
    pub fn column<T: Value>(&self, column: &str) -> Result<Vec<T>> {
        let name = self.name_of(column).ok_or_else(|| self.missing(column))?;
        let (index, leaf) =
            (self.only_leaf(name)).ok_or_else(|| self.other_type(name, T::EXPECTED))?;
        if leaf.physical == Physical::Bytes && !leaf.is_text {
            return Err(self.other_type(name, T::EXPECTED));
        }
        let mut found = Vec::new();
        let mut first_row = 0;
        let mut n_left = MAX_TEXT_BYTES.min(self.file.n_bytes().saturating_mul(MAX_REPEATS));
        for number in 0..self.footer.groups.len() {
            let values = self.decoded_column(number, index, first_row, &mut n_left)?;
            let values = T::from_column(values);
            found.extend(values.ok_or_else(|| self.other_type(name, T::EXPECTED))?);
            first_row = self.ends[number];
        }
        Ok(found)
    }

    /// The values of a leaf in a row group.
    fn decoded_column(
        &self,
        number: usize,
        index: usize,
        first_row: usize,
        n_left: &mut u64,
    ) -> Result<Column> {
        let (group, leaf) = (&self.footer.groups[number], &self.footer.leaves[index]);
        let chunk = &group.chunks[index];
        let name = leaf.path.join(".");
        let trouble = |trouble: Trouble| match trouble {
            Trouble::Error(error) => error,
            Trouble::Fault(fault) => self.fault(format!("column `{name}`: {fault}")),
        };
        let mut lists = lists::Lists::new(leaf);
        let mut dictionary = None;
        let mut items = Column::Null(0);
        for page in pages::scan(&self.file, chunk).map_err(trouble)? {
            let body = pages::body(&self.file, chunk, leaf, &page).map_err(trouble)?;
            if page.form == Form::Dictionary {
                let values = dictionary_of(leaf, &page, body).map_err(|f| trouble(f.into()))?;
                dictionary = Some(Arc::new(values));
                continue;
            }
            lists.add(&body, page.n_values).map_err(|null| match null {
                lists::Null::Value { row } => Error::Data(DataFault::Row {
                    path: self.path().into(),
                    row: first_row + row,
                    fault: format!("column `{name}` is null"),
                }),
                lists::Null::Damaged => trouble("the levels of a page are damaged".into()),
            })?;
            let more = column_of(leaf, &page, &body, dictionary.as_deref(), n_left);
            items = joined(items, more.map_err(|f| trouble(f.into()))?)
                .ok_or_else(|| trouble("its pages differ in type".into()))?;
        }
        let (column, n_rows) = lists.around(items);
        if n_rows != group.n_rows {
            let fault = format!("it has {n_rows} rows in a group of {}", group.n_rows);
            return Err(trouble(fault.into()));
        }
        Ok(column)
    }

    /// One value of a column of bytes, or of the field `bytes` of a struct, with the page that it is in.
    ///
    /// # Errors
    /// [`DataFault::Row`] when the row does not exist or the value is null, and as [`column`](Self::column)'s.
    pub fn bytes(&self, column: &str, row: usize) -> Result<Vec<u8>> {
        let name = self.name_of(column).ok_or_else(|| self.missing(column))?;
        let index = self.bytes_leaf(name);
        let index = index
            .ok_or_else(|| self.other_type(name, "bytes, or a struct with the field `bytes`"))?;
        let number = self.ends.partition_point(|&end| end <= row);
        let row_fault = |fault: String| {
            Error::Data(DataFault::Row {
                path: self.path().into(),
                row,
                fault,
            })
        };
        let Some(group) = self.footer.groups.get(number) else {
            return Err(row_fault(format!("there are {} rows", self.n_rows())));
        };
        let within = row + group.n_rows - self.ends[number];
        let trouble = |trouble: Trouble| match trouble {
            Trouble::Error(error) => error,
            Trouble::Fault(fault) => row_fault(format!("column `{name}`: {fault}")),
        };
        let pages = self.pages_of(number, index).map_err(trouble)?;
        let at = pages.partition_point(|(first, page)| {
            page.form == Form::Dictionary || first + page.n_values <= within
        });
        let Some((first, _)) = pages.get(at) else {
            return Err(row_fault(format!("column `{name}` has no page with it")));
        };
        let decoded = self.decoded((number, index, at), &pages).map_err(trouble)?;
        let found = decoded.values.get(within - first).cloned().flatten();
        let found = found.ok_or_else(|| row_fault(format!("column `{name}` is null")))?;
        let bytes = decoded.bytes_of(&found);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| {
            row_fault(format!(
                "column `{name}`: a page refers to nothing of its dictionary"
            ))
        })
    }

    /// The pages of a chunk with the row that each begins with; a dictionary comes before all.
    fn pages_of(&self, number: usize, index: usize) -> Result<Arc<Pages>, Trouble> {
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pages) = lock().get(&(number, index)) {
            return Ok(Arc::clone(pages));
        }
        let group: &Group = &self.footer.groups[number];
        let mut first = 0;
        let mut pages = Vec::new();
        for page in pages::scan(&self.file, &group.chunks[index])? {
            if page.form == Form::Dictionary && !pages.is_empty() {
                return Err("a dictionary stands behind other pages".into());
            }
            pages.push((first, page));
            if page.form != Form::Dictionary {
                first += page.n_values;
            }
        }
        if first != group.n_rows {
            return Err(
                format!("it has {first} values in a group of {} rows", group.n_rows).into(),
            );
        }
        let pages = Arc::new(pages);
        lock().insert((number, index), Arc::clone(&pages));
        Ok(pages)
    }

    /// A page, decoded now or before.
    fn decoded(&self, key: Key, pages: &[(usize, Page)]) -> Result<Arc<Decoded>, Trouble> {
        if let Some(decoded) = self.kept(key) {
            return Ok(decoded);
        }
        let (number, index, at) = key;
        let chunk = &self.footer.groups[number].chunks[index];
        let leaf = &self.footer.leaves[index];
        let page = &pages[at].1;
        let body = pages::body(&self.file, chunk, leaf, page)?;
        let dictionary = match pages.first() {
            Some((_, first))
                if first.form == Form::Dictionary && DICTIONARY.contains(&page.encoding) =>
            {
                // Kept as the page of its own number, without values.
                let key = (number, index, 0);
                match self.kept(key).and_then(|kept| kept.dictionary.clone()) {
                    Some(dictionary) => Some(dictionary),
                    None => {
                        let body = pages::body(&self.file, chunk, leaf, first)?;
                        let dictionary = Arc::new(dictionary_of(leaf, first, body)?);
                        self.keep(
                            key,
                            Decoded {
                                bytes: Vec::new(),
                                dictionary: Some(Arc::clone(&dictionary)),
                                values: Vec::new(),
                            },
                        );
                        Some(dictionary)
                    }
                }
            }
            _ => None,
        };
        let mut present = match DICTIONARY.contains(&page.encoding) {
            true => {
                let indices = indices(&body)?.into_iter();
                indices
                    .map(Found::InDictionary)
                    .collect::<Vec<_>>()
                    .into_iter()
            }
            false => {
                let read = (body.values.start, body.n_present);
                match values::read(leaf.physical, page.encoding, &body.bytes, read.0, read.1)? {
                    Values::Bytes(ranges) => {
                        let ranges = ranges.into_iter().map(Found::Here);
                        ranges.collect::<Vec<_>>().into_iter()
                    }
                    _ => return Err("it holds no bytes".into()),
                }
            }
        };
        let values = match body.definitions.is_empty() {
            true => present.map(Some).collect(),
            false => {
                let levels = body.definitions.iter();
                let found = levels.map(|level| match *level == leaf.definition {
                    true => present.next(),
                    false => None,
                });
                found.collect()
            }
        };
        let decoded = Decoded {
            bytes: body.bytes,
            dictionary,
            values,
        };
        Ok(self.keep(key, decoded))
    }

    fn kept(&self, key: Key) -> Option<Arc<Decoded>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(other, _)| *other == key)?;
        // To the end: the first goes when room is needed.
        let found = kept.remove(place)?;
        let decoded = Arc::clone(&found.1);
        kept.push_back(found);
        Some(decoded)
    }

    fn keep(&self, key: Key, decoded: Decoded) -> Arc<Decoded> {
        let decoded = Arc::new(decoded);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, Arc::clone(&decoded)));
        let mut n_bytes: usize = kept.iter().map(|(_, decoded)| decoded.n_bytes()).sum();
        while n_bytes > KEPT_BYTES && kept.len() > 1 {
            n_bytes -= kept.pop_front().map_or(0, |(_, first)| first.n_bytes());
        }
        decoded
    }
}

/// What a column may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Integers,
    Texts,
}

impl Decoded {
    fn n_bytes(&self) -> usize {
        // A dictionary is counted where it is kept by itself.
        let of_dictionary = match (&self.dictionary, self.values.is_empty()) {
            (Some(dictionary), true) => dictionary.bytes.len(),
            _ => 0,
        };
        self.bytes.len() + of_dictionary + self.values.len() * size_of::<Option<Found>>()
    }

    fn bytes_of(&self, found: &Found) -> Option<&[u8]> {
        match found {
            Found::Here(range) => self.bytes.get(range.clone()),
            Found::InDictionary(index) => self.dictionary.as_ref()?.bytes_of(*index),
        }
    }
}

impl Dictionary {
    fn bytes_of(&self, index: u32) -> Option<&[u8]> {
        match &self.values {
            Values::Bytes(ranges) => self.bytes.get(ranges.get(index as usize)?.clone()),
            _ => None,
        }
    }
}

fn dictionary_of(leaf: &Leaf, page: &Page, body: Body) -> Result<Dictionary, String> {
    if !DICTIONARY.contains(&page.encoding) && page.encoding != PLAIN {
        return Err("its dictionary is of an unknown encoding".into());
    }
    let values = values::read(leaf.physical, PLAIN, &body.bytes, 0, page.n_values)?;
    Ok(Dictionary {
        bytes: body.bytes,
        values,
    })
}

/// Numbers in a dictionary of the values that are there.
fn indices(body: &Body) -> Result<Vec<u32>, String> {
    let short = || "the numbers of a page are damaged".to_owned();
    if body.n_present == 0 {
        return Ok(Vec::new());
    }
    let bytes = body.bytes.get(body.values.clone()).ok_or_else(short)?;
    let (width, packed) = bytes.split_first().ok_or_else(short)?;
    hybrid::read(packed, *width, body.n_present).ok_or_else(short)
}

/// The values of a page that are there.
fn column_of(
    leaf: &Leaf,
    page: &Page,
    body: &Body,
    dictionary: Option<&Dictionary>,
    n_left: &mut u64,
) -> Result<Column, String> {
    let mut text = |bytes: Option<&[u8]>| -> Result<String, String> {
        let bytes = bytes.ok_or("a page refers to nothing of its dictionary")?;
        let left = n_left.checked_sub(bytes.len() as u64);
        *n_left = left.ok_or("its texts are a thousand times as long as the file")?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8")?;
        Ok(text.to_owned())
    };
    if !DICTIONARY.contains(&page.encoding) {
        let (start, n) = (body.values.start, body.n_present);
        let read = values::read(leaf.physical, page.encoding, &body.bytes, start, n)?;
        return Ok(match read {
            Values::Integers(values) => Column::Integers(values),
            Values::Floats(values) => Column::Floats(values),
            Values::Bytes(ranges) => {
                let texts = ranges.into_iter().map(|range| text(body.bytes.get(range)));
                Column::Texts(texts.collect::<Result<_, _>>()?)
            }
        });
    }
    let dictionary = dictionary.ok_or("a page refers to a dictionary that is not there")?;
    let indices = indices(body)?;
    let n_known = dictionary.values.len();
    if indices.iter().any(|index| *index as usize >= n_known) {
        return Err("a page refers to nothing of its dictionary".into());
    }
    let of = |index: &u32| *index as usize;
    Ok(match &dictionary.values {
        Values::Integers(known) => Column::Integers(indices.iter().map(|i| known[of(i)]).collect()),
        Values::Floats(known) => Column::Floats(indices.iter().map(|i| known[of(i)]).collect()),
        Values::Bytes(_) => {
            let texts = indices
                .iter()
                .map(|&index| text(dictionary.bytes_of(index)));
            Column::Texts(texts.collect::<Result<_, _>>()?)
        }
    })
}

/// Two parts of a column.
fn joined(first: Column, second: Column) -> Option<Column> {
    match (first, second) {
        (Column::Null(0), second) => Some(second),
        (mut first, second) => first.append(second).then_some(first),
    }
}
