//! Arrow files as ViLT, METER and VLMo have them, read value by value.
//!
//! A real file has one record batch of some gigabytes, nearly all of it pictures. So a batch is
//! never read as a whole: the positions of its buffers are known from its header, text columns
//! are read alone, and a picture is read where it lies.

mod column;
mod fields;
mod messages;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use merge::platform;
use serde::de::DeserializeOwned;

use crate::{DataFault, Error, Result};
pub use column::Column;
use column::{Cursor, Reading, Wanted};
pub use fields::{Field, Kind};
use messages::{Batch, Messages};
pub use values::Value;

/// The largest single value, say a picture file, that is read.
const MAX_VALUE_BYTES: u64 = 512 << 20;

/// The most that one compressed buffer may unfold to.
const MAX_UNFOLDED_BYTES: u64 = 4 << 30;

/// A table in an arrow file: the IPC file format or the stream format, whole or compressed with
/// LZ4. Columns of text and numbers are read batch by batch, binary values one by one.
pub struct Table {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    fields: Vec<Field>,
    notes: BTreeMap<String, String>,
    batches: Vec<Batch>,
    /// The number of rows up to and with each batch.
    ends: Vec<usize>,
    dictionaries: HashMap<i64, Vec<Batch>>,
    /// The last compressed buffer that was unfolded, by its position.
    unfolded: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (formatter.debug_struct("Table"))
            .field("path", &self.path)
            .field("fields", &self.fields)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Table {
    /// Opens a file and reads its schema and where its batches lie.
    ///
    /// # Errors
    /// [`DataFault::Arrow`] when the file is damaged, truncated or of a kind that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io("open", path, source);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.into() });
        }
        let file = File::open(path).map_err(failed)?;
        let mut start = [0; 64];
        let n_seen = platform::read_at(&file, &mut start, 0).map_err(failed)?;
        merge::io::require_fetched(path, &start[..n_seen])?;
        let messages = Messages::read(path, &file, metadata.len())?;
        let mut ends = Vec::with_capacity(messages.batches.len());
        let mut n_rows = 0_usize;
        for batch in &messages.batches {
            let end = usize::try_from(batch.n_rows).ok();
            let end = end.and_then(|rows| n_rows.checked_add(rows));
            n_rows = end.ok_or_else(|| {
                Error::Data(DataFault::Arrow {
                    path: path.into(),
                    fault: "it claims more rows than can be counted".into(),
                })
            })?;
            ends.push(n_rows);
        }
        Ok(Self {
            path: path.into(),
            file,
            n_bytes: metadata.len(),
            fields: messages.fields,
            notes: messages.notes,
            batches: messages.batches,
            ends,
            dictionaries: messages.dictionaries,
            unfolded: Mutex::new(None),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of record batches.
    #[must_use]
    pub fn n_batches(&self) -> usize {
        self.batches.len()
    }

    /// The columns, in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The writer's notes on the file, by key.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }

    /// A note that is JSON; `None` if the writer made no note under this key.
    pub(crate) fn note<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let read = self.notes.get(key).map(|note| serde_json::from_str(note));
        read.transpose()
            .map_err(|error| self.fault(format!("its note `{key}` is damaged: {error}")))
    }

    /// Whether there is a column of this name.
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        self.fields.iter().any(|field| field.name == column)
    }

    pub(crate) fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Arrow {
            path: self.path.clone(),
            fault: fault.into(),
        })
    }

    /// An error at a row.
    pub fn row_fault(&self, row: usize, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Row {
            path: self.path.clone(),
            row,
            fault: fault.into(),
        })
    }

    fn index_of(&self, column: &str) -> Result<usize> {
        let index = self.fields.iter().position(|field| field.name == column);
        index.ok_or_else(|| {
            Error::Data(DataFault::MissingColumn {
                path: self.path.clone(),
                column: column.into(),
                found: (self.fields.iter().map(|field| field.name.as_str()))
                    .collect::<Vec<_>>()
                    .join(", "),
            })
        })
    }

    /// A column of text or numbers, or of lists of them, from all batches.
    ///
    /// # Errors
    /// [`DataFault::MissingColumn`], [`DataFault::ColumnType`] when the column is of another type,
    /// [`DataFault::Row`] when a value is null, [`DataFault::Arrow`] when the file is damaged.
    pub fn column<T: Value>(&self, name: &str) -> Result<Vec<T>> {
        let mut values = Vec::new();
        for column in self.columns(name)? {
            let column = column?;
            let found = column.describe();
            values.extend(T::from_column(column).ok_or_else(|| {
                Error::Data(DataFault::ColumnType {
                    path: self.path.clone(),
                    column: name.into(),
                    found,
                    expected: T::EXPECTED,
                })
            })?);
        }
        Ok(values)
    }

    /// A column of lists of text, or of one text a row as EVE's files have it.
    ///
    /// # Errors
    /// As [`column`](Self::column)'s.
    pub fn text_lists(&self, name: &str) -> Result<Vec<Vec<String>>> {
        let index = self.index_of(name)?;
        if matches!(self.fields[index].kind, Kind::Bytes { text: true, .. }) {
            let texts: Vec<String> = self.column(name)?;
            return Ok(texts.into_iter().map(|text| vec![text]).collect());
        }
        self.column(name)
    }

    /// A column of text or whole numbers, as text.
    ///
    /// # Errors
    /// As [`column`](Self::column)'s.
    pub fn ids(&self, name: &str) -> Result<Vec<String>> {
        let index = self.index_of(name)?;
        if matches!(self.fields[index].kind, Kind::Integer { .. }) {
            let ids: Vec<i64> = self.column(name)?;
            return Ok(ids.iter().map(ToString::to_string).collect());
        }
        self.column(name)
    }

    fn columns(&self, name: &str) -> Result<impl Iterator<Item = Result<Column>>> {
        let index = self.index_of(name)?;
        let mut reading = Reading::of_file(self.n_bytes);
        Ok(self.batches.iter().enumerate().map(move |(number, batch)| {
            let first_row = self.ends[number] - batch.n_rows as usize;
            let (mut cursor, field) = self.cursor_at(batch, index)?;
            self.decode(batch, field, &mut cursor, Some(first_row), &mut reading)
        }))
    }

    fn cursor_at(&self, batch: &Batch, index: usize) -> Result<(Cursor, &Field)> {
        let mut cursor = Cursor::default();
        for field in &self.fields[..index] {
            cursor.skip(field);
        }
        let field = &self.fields[index];
        let (n_values, _) = self.node(batch, cursor.node)?;
        if n_values != batch.n_rows {
            return Err(self.fault(format!(
                "column `{}` has {n_values} values in a batch of {} rows",
                field.name, batch.n_rows
            )));
        }
        Ok((cursor, field))
    }

    /// One value of a binary (or text) column, without reading any other.
    ///
    /// # Errors
    /// [`DataFault::Row`] when the row does not exist or the value is null or too large, and as
    /// [`column`](Self::column)'s.
    pub fn bytes(&self, name: &str, row: usize) -> Result<Vec<u8>> {
        self.head(name, row, u64::MAX)
    }

    /// The first bytes of a value, `limit` at most: the head of a picture tells its size.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes)'s.
    pub fn head(&self, name: &str, row: usize, limit: u64) -> Result<Vec<u8>> {
        let index = self.index_of(name)?;
        let number = self.ends.partition_point(|&end| end <= row);
        let Some(batch) = self.batches.get(number) else {
            return Err(self.row_fault(row, format!("there are {} rows", self.n_rows())));
        };
        let within = row + batch.n_rows as usize - self.ends[number];
        let (cursor, field) = self.cursor_at(batch, index)?;
        let wanted = Wanted { row, limit };
        self.value(batch, field, cursor, within, wanted)
    }

    /// The length of every value of a binary (or text) column, without reading them.
    ///
    /// # Errors
    /// As [`column`](Self::column)'s.
    pub fn lengths(&self, name: &str) -> Result<Vec<u64>> {
        let index = self.index_of(name)?;
        let mut lengths = Vec::new();
        for batch in &self.batches {
            let (cursor, field) = self.cursor_at(batch, index)?;
            let Kind::Bytes { large, .. } = field.kind else {
                return Err(self.not_bytes(field));
            };
            if field.dictionary.is_some() {
                return Err(self.not_bytes(field));
            }
            let offsets = self.offsets(batch, cursor.buffer + 1, large, 0..batch.n_rows)?;
            lengths.extend(offsets.windows(2).map(|pair| pair[1] - pair[0]));
        }
        Ok(lengths)
    }

    fn not_bytes(&self, field: &Field) -> Error {
        Error::Data(DataFault::ColumnType {
            path: self.path.clone(),
            column: field.name.clone(),
            found: field.describe(),
            expected: "binary",
        })
    }

    /// Length and null count of a node of the batch's header.
    fn node(&self, batch: &Batch, index: usize) -> Result<(u64, u64)> {
        let node = batch.nodes.get(index).copied();
        node.ok_or_else(|| self.fault("a batch has fewer columns than the schema"))
    }

    /// Bytes `from..to` of a buffer of the batch.
    fn read(&self, batch: &Batch, index: usize, from: u64, to: u64) -> Result<Vec<u8>> {
        let Some(buffer) = batch.buffers.get(index) else {
            return Err(self.fault("a batch has fewer buffers than the schema asks for"));
        };
        if batch.is_compressed {
            let unfolded = self.unfold(buffer.start, buffer.end - buffer.start)?;
            let range = usize::try_from(from).ok().zip(usize::try_from(to).ok());
            let bytes = range.and_then(|(from, to)| unfolded.get(from..to));
            return match bytes {
                Some(bytes) => Ok(bytes.to_vec()),
                None => Err(self.fault("a compressed buffer is shorter than its column")),
            };
        }
        if from > to || to > buffer.end - buffer.start {
            return Err(self.fault("a buffer is shorter than its column"));
        }
        self.read_at(buffer.start + from, to - from)
    }

    fn buffer_is_empty(&self, batch: &Batch, index: usize) -> bool {
        (batch.buffers.get(index)).is_some_and(|buffer| buffer.start == buffer.end)
    }

    /// Bytes of the file; the caller has made sure that they are in it.
    fn read_at(&self, position: u64, n_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n_bytes as usize];
        let read = platform::read_exact_at(&self.file, &mut bytes, position);
        read.map_err(|source| Error::io("read", &self.path, source))?;
        Ok(bytes)
    }

    /// Decompresses the buffer at a position: its length in eight bytes, then an LZ4 frame.
    fn unfold(&self, position: u64, n_bytes: u64) -> Result<Arc<Vec<u8>>> {
        // A panic elsewhere leaves a whole buffer or none.
        let mut last = match self.unfolded.lock() {
            Ok(last) => last,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some((at, bytes)) = last.as_ref()
            && *at == position
        {
            return Ok(Arc::clone(bytes));
        }
        let folded = self.read_at(position, n_bytes)?;
        let bytes = match folded.split_first_chunk::<8>() {
            None if folded.is_empty() => Vec::new(),
            None => return Err(self.fault("a compressed buffer has no length")),
            Some((length, frame)) => match i64::from_le_bytes(*length) {
                -1 => frame.to_vec(),
                length => self.unfold_frame(frame, length)?,
            },
        };
        let bytes = Arc::new(bytes);
        *last = Some((position, Arc::clone(&bytes)));
        Ok(bytes)
    }

    fn unfold_frame(&self, frame: &[u8], length: i64) -> Result<Vec<u8>> {
        use std::io::Read;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        if length > MAX_UNFOLDED_BYTES {
            return Err(self.fault(format!(
                "a compressed buffer has {length} bytes; at most {MAX_UNFOLDED_BYTES} are unfolded"
            )));
        }
        let mut bytes = Vec::new();
        let decoder = lz4_flex::frame::FrameDecoder::new(frame);
        let read = decoder.take(length + 1).read_to_end(&mut bytes);
        match read {
            Ok(_) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) => Err(self.fault("a compressed buffer has another length than it says")),
            Err(error) => Err(self.fault(format!("a compressed buffer is damaged: {error}"))),
        }
    }
}
