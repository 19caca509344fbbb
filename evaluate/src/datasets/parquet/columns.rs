//! Whole columns, of text or numbers or lists of them.

use super::super::arrow::{Column, Value};
use super::super::text_budget::TextBudget;
use super::dictionary::{Dictionary, indices};
use super::footer::{Leaf, Physical};
use super::lists;
use super::pages::{self, Body, Form, Page, Trouble};
use super::values::{self, DICTIONARY, Values};
use super::{ColumnKind, ParquetTable};
use crate::{DataFault, Error, Result};

impl ParquetTable {
    /// Whether a column is of whole numbers, or of texts.
    pub(in crate::datasets) fn is_of(&self, column: &str, kind: ColumnKind) -> bool {
        let found = self.name_of(column).and_then(|name| self.only_leaf(name));
        found.is_some_and(|(_, leaf)| match kind {
            ColumnKind::Integers => {
                matches!(leaf.physical, Physical::Int32 | Physical::Int64) && leaf.lists.is_empty()
            }
            ColumnKind::Texts => leaf.is_text && leaf.lists.is_empty(),
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
        let mut budget = TextBudget::of_file(self.file.n_bytes());
        for number in 0..self.footer.groups.len() {
            let values = self.decoded_column(number, index, first_row, &mut budget)?;
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
        budget: &mut TextBudget,
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
                let values = Dictionary::read(leaf, &page, body).map_err(|f| trouble(f.into()))?;
                dictionary = Some(values);
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
            let more = column_of(leaf, &page, &body, dictionary.as_ref(), budget);
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
}

/// The values of a page that are not null.
fn column_of(
    leaf: &Leaf,
    page: &Page,
    body: &Body,
    dictionary: Option<&Dictionary>,
    budget: &mut TextBudget,
) -> Result<Column, String> {
    let mut text = |bytes: Option<&[u8]>| -> Result<String, String> {
        let bytes = bytes.ok_or("a page refers to nothing of its dictionary")?;
        budget.take(bytes.len())?;
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
