//! Rows into an arrow file, in batches of bounded size.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder,
};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use merge::platform;

use super::plan::{Cell, Kind};
use crate::{Error, Result};

/// A batch ends at this many bytes of pictures or this many rows, whichever comes first.
const BATCH_BYTES: usize = 64 << 20;
const BATCH_ROWS: usize = 4096;

/// Writes beside the target; [`finish`](Self::finish) gives the file its name.
pub(super) struct Writer {
    target: PathBuf,
    partial: PathBuf,
    file: FileWriter<BufWriter<File>>,
    schema: Arc<Schema>,
    pictures: Vec<Vec<Vec<u8>>>,
    rows: Vec<Vec<Cell>>,
    n_bytes: usize,
    n_rows: usize,
}

impl Writer {
    /// A file with columns of these pictures, and other columns behind them.
    pub(super) fn create(
        target: &Path,
        pictures: &[&str],
        columns: &[(&'static str, Kind)],
        notes: &[(&str, &str)],
    ) -> Result<Self> {
        let images = pictures
            .iter()
            .map(|name| Field::new(*name, DataType::Binary, true));
        let others = columns
            .iter()
            .map(|(name, kind)| Field::new(*name, data_type(*kind), true));
        let fields: Vec<Field> = images.chain(others).collect();
        let notes = notes
            .iter()
            .map(|(key, note)| ((*key).to_owned(), (*note).to_owned()));
        let metadata: std::collections::HashMap<String, String> = notes.collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Files of a killed run go; links that others may put there are not followed.
        let partial = target.with_file_name(format!(".{name}.partial"));
        let failed = |source| Error::io("create", &partial, source);
        let made = match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => File::create_new(&partial),
        };
        let file = BufWriter::with_capacity(1 << 20, made.map_err(failed)?);
        let file = FileWriter::try_new(file, &schema).map_err(|e| unwritten(target, &e))?;
        Ok(Self {
            target: target.into(),
            partial,
            file,
            schema,
            pictures: vec![Vec::new(); pictures.len()],
            rows: Vec::new(),
            n_bytes: 0,
            n_rows: 0,
        })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn push(&mut self, pictures: Vec<Vec<u8>>, cells: Vec<Cell>) -> Result<()> {
        for (column, bytes) in self.pictures.iter_mut().zip(pictures) {
            self.n_bytes += bytes.len();
            column.push(bytes);
        }
        self.rows.push(cells);
        self.n_rows += 1;
        if self.n_bytes >= BATCH_BYTES || self.rows.len() >= BATCH_ROWS {
            self.write_batch()?;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let n_bytes = std::mem::take(&mut self.n_bytes);
        for pictures in &mut self.pictures {
            let mut builder = BinaryBuilder::with_capacity(pictures.len(), n_bytes);
            pictures
                .drain(..)
                .for_each(|bytes| builder.append_value(bytes));
            columns.push(Arc::new(builder.finish()));
        }
        let n_pictures = columns.len();
        let rows = std::mem::take(&mut self.rows);
        let fields = self.schema.fields().iter().skip(n_pictures);
        let mut cells: Vec<Vec<Cell>> = vec![Vec::with_capacity(rows.len()); fields.len()];
        for row in rows {
            for (column, cell) in cells.iter_mut().zip(row) {
                column.push(cell);
            }
        }
        columns.extend(
            fields
                .zip(cells)
                .map(|(field, cells)| array(field.data_type(), cells)),
        );
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        let written = batch.and_then(|batch| self.file.write(&batch));
        written.map_err(|error| unwritten(&self.target, &error))
    }

    /// Writes the remaining rows and a last note, syncs the file, and renames it to its name.
    pub(super) fn finish(mut self, key: &str, note: &str) -> Result<usize> {
        if !self.rows.is_empty() {
            self.write_batch()?;
        }
        self.file.write_metadata(key, note);
        let failed = |error: &ArrowError| unwritten(&self.target, error);
        self.file.finish().map_err(|error| failed(&error))?;
        let io = |source| Error::io("write", &self.target, source);
        let buffered = self.file.get_mut();
        buffered.flush().map_err(io)?;
        buffered.get_ref().sync_all().map_err(io)?;
        std::fs::rename(&self.partial, &self.target).map_err(io)?;
        if let Some(folder) = self.target.parent() {
            let folder = if folder == Path::new("") {
                Path::new(".")
            } else {
                folder
            };
            platform::sync_folder(folder).map_err(|source| Error::io("sync", folder, source))?;
        }
        Ok(self.n_rows)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Renamed, if it was finished: then there is nothing to remove.
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn unwritten(target: &Path, error: &ArrowError) -> Error {
    let source = std::io::Error::other(error.to_string());
    Error::io("write", target, source)
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::Text => DataType::Utf8,
        Kind::Texts => list(DataType::Utf8),
        Kind::TextLists => list(list(DataType::Utf8)),
        Kind::Integer => DataType::Int64,
        Kind::Integers => list(DataType::Int64),
        Kind::IntegerLists => list(list(DataType::Int64)),
        Kind::FloatLists => list(list(DataType::Float64)),
    }
}

/// The values of a column; which builder, the first of them tells.
fn array(data_type: &DataType, cells: Vec<Cell>) -> ArrayRef {
    let mut texts = ListBuilder::new(StringBuilder::new());
    let mut text_lists = ListBuilder::new(ListBuilder::new(StringBuilder::new()));
    let mut integers = ListBuilder::new(Int64Builder::new());
    let mut integer_lists = ListBuilder::new(ListBuilder::new(Int64Builder::new()));
    let mut float_lists = ListBuilder::new(ListBuilder::new(Float64Builder::new()));
    let (mut plain_texts, mut plain_integers) = (Vec::new(), Vec::new());
    for cell in cells {
        match cell {
            Cell::Text(value) => plain_texts.push(value),
            Cell::Integer(value) => plain_integers.push(value),
            Cell::Texts(values) => texts.append_value(values.into_iter().map(Some)),
            Cell::Integers(values) => integers.append_value(values.into_iter().map(Some)),
            Cell::TextLists(lists) => {
                for values in lists {
                    text_lists
                        .values()
                        .append_value(values.into_iter().map(Some));
                }
                text_lists.append(true);
            }
            Cell::IntegerLists(lists) => {
                for values in lists {
                    integer_lists
                        .values()
                        .append_value(values.into_iter().map(Some));
                }
                integer_lists.append(true);
            }
            Cell::FloatLists(lists) => {
                for values in lists {
                    float_lists
                        .values()
                        .append_value(values.into_iter().map(Some));
                }
                float_lists.append(true);
            }
        }
    }
    if *data_type == DataType::Utf8 {
        Arc::new(StringArray::from(plain_texts))
    } else if *data_type == DataType::Int64 {
        Arc::new(Int64Array::from(plain_integers))
    } else if *data_type == self::data_type(Kind::Texts) {
        Arc::new(texts.finish())
    } else if *data_type == self::data_type(Kind::Integers) {
        Arc::new(integers.finish())
    } else if *data_type == self::data_type(Kind::TextLists) {
        Arc::new(text_lists.finish())
    } else if *data_type == self::data_type(Kind::IntegerLists) {
        Arc::new(integer_lists.finish())
    } else {
        Arc::new(float_lists.finish())
    }
}
