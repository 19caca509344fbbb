//! The values of a column in a batch.

use std::collections::HashMap;
use std::ops::Range;

use super::super::text_budget::TextBudget;
use super::messages::Batch;
use super::{Field, Kind, MAX_VALUE_BYTES, Table};
use crate::{DataFault, Error, Result};

/// The values of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// This number of nulls.
    Null(usize),
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Floating point numbers.
    Floats(Vec<f64>),
    /// Text.
    Texts(Vec<String>),
    /// Lists: the length of each, and the items of all.
    Lists(Vec<usize>, Box<Column>),
}

impl Column {
    /// The type in words.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null(_) => "null".into(),
            Self::Integers(_) => "integers".into(),
            Self::Floats(_) => "floating point numbers".into(),
            Self::Texts(_) => "text".into(),
            Self::Lists(_, items) => format!("lists of {}", items.describe()),
        }
    }

    /// The values at `indices`; in words why there are none.
    fn gather(&self, indices: &[i64], budget: &mut TextBudget) -> Result<Self, String> {
        const BEYOND: &str = "it does not fit its dictionary";
        fn pick<T: Clone>(values: &[T], indices: &[i64]) -> Result<Vec<T>, String> {
            let picked = indices.iter().map(|&index| {
                let index = usize::try_from(index).ok();
                let value = index.and_then(|index| values.get(index));
                value.cloned().ok_or_else(|| BEYOND.to_owned())
            });
            picked.collect()
        }
        Ok(match self {
            Self::Integers(values) => Self::Integers(pick(values, indices)?),
            Self::Floats(values) => Self::Floats(pick(values, indices)?),
            Self::Texts(values) => {
                let lengths: Vec<usize> = values.iter().map(String::len).collect();
                for length in pick(&lengths, indices)? {
                    budget.take(length)?;
                }
                Self::Texts(pick(values, indices)?)
            }
            Self::Null(_) if indices.is_empty() => Self::Null(0),
            Self::Null(_) | Self::Lists(..) => return Err(BEYOND.into()),
        })
    }

    /// Puts the values of another part behind; whether they are of one type.
    pub(in crate::datasets) fn append(&mut self, other: Self) -> bool {
        match (self, other) {
            (Self::Integers(values), Self::Integers(more)) => values.extend(more),
            (Self::Floats(values), Self::Floats(more)) => values.extend(more),
            (Self::Texts(values), Self::Texts(more)) => values.extend(more),
            _ => return false,
        }
        true
    }
}

/// State that the batches of a column share while it is read.
#[derive(Debug)]
pub(super) struct Reading {
    budget: TextBudget,
    /// The entries of dictionaries, by number.
    entries: HashMap<i64, Column>,
}

impl Reading {
    /// Of a column of a file of `n_bytes`.
    pub(super) fn of_file(n_bytes: u64) -> Self {
        Self {
            budget: TextBudget::of_file(n_bytes),
            entries: HashMap::new(),
        }
    }
}

/// A place in the flat lists of nodes and buffers of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    pub(super) node: usize,
    pub(super) buffer: usize,
}

/// The value that a caller asks for: its row, for errors, and the most bytes that it may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) row: usize,
    pub(super) limit: u64,
}

impl Cursor {
    /// Over a column and everything in it.
    pub(super) fn skip(&mut self, field: &Field) {
        self.node += 1;
        if field.dictionary.is_some() {
            self.buffer += 2;
            return;
        }
        match &field.kind {
            Kind::Null => {}
            Kind::Integer { .. } | Kind::Float { .. } => self.buffer += 2,
            Kind::Bytes { .. } => self.buffer += 3,
            Kind::List { item, .. } => {
                self.buffer += 2;
                self.skip(item);
            }
            Kind::Other(_, n_buffers, children) => {
                self.buffer += n_buffers;
                children.iter().for_each(|child| self.skip(child));
            }
        }
    }
}

impl Table {
    /// The column at the cursor. With `first_row` given, its values are rows of the table.
    pub(super) fn decode(
        &self,
        batch: &Batch,
        field: &Field,
        cursor: &mut Cursor,
        first_row: Option<usize>,
        reading: &mut Reading,
    ) -> Result<Column> {
        let (n_values, _) = self.node(batch, cursor.node)?;
        self.decode_range(batch, field, cursor, 0..n_values, first_row, reading)
    }

    fn decode_range(
        &self,
        batch: &Batch,
        field: &Field,
        cursor: &mut Cursor,
        range: Range<u64>,
        first_row: Option<usize>,
        reading: &mut Reading,
    ) -> Result<Column> {
        let here = *cursor;
        cursor.skip(field);
        let (n_values, n_nulls) = self.node(batch, here.node)?;
        if range.start > range.end || range.end > n_values {
            return Err(self.fault(format!("column `{}` lacks items", field.name)));
        }
        let n_here = range.end - range.start;
        if field.kind == Kind::Null {
            return Ok(Column::Null(n_here as usize));
        }
        if n_nulls > 0
            && let Some(index) = self.first_null(batch, here.buffer, &range)?
        {
            let what = format!("column `{}` is null", field.name);
            return Err(match first_row {
                Some(first) => self.row_fault(first + (index - range.start) as usize, what),
                None => self.fault(format!("an item of {what}")),
            });
        }
        if let Some((id, bits)) = field.dictionary {
            let indices = self.integers(batch, here.buffer + 1, bits, true, range)?;
            return self.through_dictionary(field, id, &indices, reading);
        }
        match &field.kind {
            &Kind::Integer { bits, signed } => {
                let values = self.integers(batch, here.buffer + 1, bits, signed, range)?;
                Ok(Column::Integers(values))
            }
            &Kind::Float { bits } => {
                let width = u64::from(bits / 8);
                let bytes = self.fixed(batch, here.buffer + 1, width, &range)?;
                Ok(Column::Floats(floats(&bytes, bits)))
            }
            &Kind::Bytes { large, text: true } => {
                let offsets = self.offsets(batch, here.buffer + 1, large, range)?;
                Ok(Column::Texts(self.texts(batch, field, here, &offsets)?))
            }
            Kind::List { large, item } => {
                let offsets = self.offsets(batch, here.buffer + 1, *large, range)?;
                let items = match (offsets.first(), offsets.last()) {
                    (Some(&first), Some(&last)) => first..last,
                    _ => 0..0,
                };
                let mut inner = Cursor {
                    node: here.node + 1,
                    buffer: here.buffer + 2,
                };
                let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
                let lengths = lengths.collect();
                let items = self.decode_range(batch, item, &mut inner, items, None, reading)?;
                Ok(Column::Lists(lengths, Box::new(items)))
            }
            Kind::Null | Kind::Bytes { .. } | Kind::Other(..) => {
                Err(Error::Data(DataFault::ColumnType {
                    path: self.path.clone(),
                    column: field.name.clone(),
                    found: field.describe(),
                    expected: "text, numbers or lists of them",
                }))
            }
        }
    }

    /// One value of a binary or text column.
    pub(super) fn value(
        &self,
        batch: &Batch,
        field: &Field,
        cursor: Cursor,
        within: usize,
        wanted: Wanted,
    ) -> Result<Vec<u8>> {
        let row = wanted.row;
        let at = within as u64..within as u64 + 1;
        let (_, n_nulls) = self.node(batch, cursor.node)?;
        if n_nulls > 0 && self.first_null(batch, cursor.buffer, &at)?.is_some() {
            return Err(self.row_fault(row, format!("column `{}` is null", field.name)));
        }
        if let Some((id, bits)) = field.dictionary {
            let index = self.integers(batch, cursor.buffer + 1, bits, true, at)?;
            let mut left = index.first().and_then(|&index| u64::try_from(index).ok());
            let plain = Field {
                dictionary: None,
                ..field.clone()
            };
            for values in self.dictionaries.get(&id).into_iter().flatten() {
                match left {
                    Some(index) if index < values.n_rows => {
                        let index = index as usize;
                        return self.value(values, &plain, Cursor::default(), index, wanted);
                    }
                    _ => left = left.and_then(|index| index.checked_sub(values.n_rows)),
                }
            }
            let fault = format!("column `{}` names no entry of its dictionary", field.name);
            return Err(self.row_fault(row, fault));
        }
        let Kind::Bytes { large, .. } = field.kind else {
            return Err(self.not_bytes(field));
        };
        let offsets = self.offsets(batch, cursor.buffer + 1, large, at)?;
        let &[from, to] = offsets.as_slice() else {
            return Err(self.fault(format!("column `{}` has no offsets", field.name)));
        };
        if to - from > MAX_VALUE_BYTES {
            let n_bytes = to - from;
            let fault = format!(
                "column `{}` has {n_bytes} bytes; at most {MAX_VALUE_BYTES} are read",
                field.name
            );
            return Err(self.row_fault(row, fault));
        }
        let to = to.min(from.saturating_add(wanted.limit));
        self.read(batch, cursor.buffer + 2, from, to)
    }

    fn through_dictionary(
        &self,
        field: &Field,
        id: i64,
        indices: &[i64],
        reading: &mut Reading,
    ) -> Result<Column> {
        if !reading.entries.contains_key(&id) {
            let entries = self.entries(field, id, reading)?;
            reading.entries.insert(id, entries);
        }
        let entries = reading.entries.get(&id).unwrap_or(&Column::Null(0));
        let gathered = entries.gather(indices, &mut reading.budget);
        gathered.map_err(|fault| self.fault(format!("column `{}`: {fault}", field.name)))
    }

    /// The entries of a dictionary.
    fn entries(&self, field: &Field, id: i64, reading: &mut Reading) -> Result<Column> {
        let plain = Field {
            dictionary: None,
            ..field.clone()
        };
        let mut entries = Column::Null(0);
        for batch in self.dictionaries.get(&id).into_iter().flatten() {
            let more = self.decode(batch, &plain, &mut Cursor::default(), None, reading)?;
            match &mut entries {
                Column::Null(0) => entries = more,
                entries => {
                    if !entries.append(more) {
                        let name = &field.name;
                        let fault = format!("the dictionaries of column `{name}` differ in type");
                        return Err(self.fault(fault));
                    }
                }
            }
        }
        Ok(entries)
    }

    /// The first of the values in `range` that is null.
    fn first_null(&self, batch: &Batch, buffer: usize, range: &Range<u64>) -> Result<Option<u64>> {
        if range.is_empty() || self.buffer_is_empty(batch, buffer) {
            return Ok(None);
        }
        let first_byte = range.start / 8;
        let bits = self.read(batch, buffer, first_byte, range.end.div_ceil(8))?;
        let is_null = |index: &u64| {
            let byte = bits[(index / 8 - first_byte) as usize];
            byte & (1 << (index % 8)) == 0
        };
        Ok(range.clone().find(is_null))
    }

    /// Values of fixed width.
    fn fixed(
        &self,
        batch: &Batch,
        buffer: usize,
        width: u64,
        range: &Range<u64>,
    ) -> Result<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let place = |index: u64| index.checked_mul(width);
        match (place(range.start), place(range.end)) {
            (Some(from), Some(to)) => self.read(batch, buffer, from, to),
            _ => Err(self.fault("a column claims more values than can be counted")),
        }
    }

    fn integers(
        &self,
        batch: &Batch,
        buffer: usize,
        bits: u8,
        signed: bool,
        range: Range<u64>,
    ) -> Result<Vec<i64>> {
        let width = usize::from(bits / 8);
        let bytes = self.fixed(batch, buffer, width as u64, &range)?;
        let values = bytes.chunks_exact(width).map(|bytes| {
            let is_negative = signed && bytes[width - 1] >= 0x80;
            let mut wide = [if is_negative { 0xff } else { 0 }; 8];
            wide[..width].copy_from_slice(bytes);
            i64::from_le_bytes(wide)
        });
        Ok(values.collect())
    }

    /// The offsets around the values in `range`, one more than values, never falling.
    pub(super) fn offsets(
        &self,
        batch: &Batch,
        buffer: usize,
        large: bool,
        range: Range<u64>,
    ) -> Result<Vec<u64>> {
        if range.is_empty() {
            // A column without rows may lack even its one offset.
            return Ok(Vec::new());
        }
        let bits = if large { 64 } else { 32 };
        let raw = self.integers(batch, buffer, bits, true, range.start..range.end + 1)?;
        let offsets: Option<Vec<u64>> = raw.iter().map(|&raw| u64::try_from(raw).ok()).collect();
        match offsets {
            Some(offsets) if offsets.is_sorted() => Ok(offsets),
            _ => Err(self.fault("the offsets of a column are damaged")),
        }
    }

    fn texts(
        &self,
        batch: &Batch,
        field: &Field,
        cursor: Cursor,
        offsets: &[u64],
    ) -> Result<Vec<String>> {
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
            return Ok(Vec::new());
        };
        let bytes = self.read(batch, cursor.buffer + 2, first, last)?;
        let texts = offsets.windows(2).map(|pair| {
            let bytes = &bytes[(pair[0] - first) as usize..(pair[1] - first) as usize];
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| self.fault(format!("column `{}` is not UTF-8", field.name)))
        });
        texts.collect()
    }
}

fn floats(bytes: &[u8], bits: u8) -> Vec<f64> {
    if bits == 32 {
        let values = bytes.as_chunks::<4>().0.iter();
        return values
            .map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
            .collect();
    }
    let values = bytes.as_chunks::<8>().0.iter();
    values.map(|&bytes| f64::from_le_bytes(bytes)).collect()
}
