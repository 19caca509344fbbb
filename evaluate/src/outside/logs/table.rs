//! Answers as a table: CSV, TSV, or JSON of rows or of columns, as pandas writes it.

use std::path::Path;

use serde_json::{Map, Value};

use super::record::Fields;
use super::results::json_of;
use crate::error::OutsideFault;
use crate::text::file::{self, MARK};
use crate::{Error, Result};

/// The largest table that is read.
const MAX_BYTES: u64 = 1 << 30;

/// Calls `each` with every row and its line, from 1.
pub fn read(path: &Path, each: &mut dyn FnMut(usize, &Fields) -> Result<()>) -> Result<()> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("json") => of_json(path, each),
        Some("tsv") => of_cells(path, b'\t', each),
        _ => of_cells(path, b',', each),
    }
}

fn of_cells(
    path: &Path,
    separator: u8,
    each: &mut dyn FnMut(usize, &Fields) -> Result<()>,
) -> Result<()> {
    let bad = |line: u64, fault: String| {
        Error::Outside(OutsideFault::BadRecord {
            path: path.into(),
            line: line as usize,
            fault,
        })
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .from_reader(file::open(path, MAX_BYTES)?);
    let headings = reader
        .headers()
        .map_err(|fault| bad(1, fault.to_string()))?;
    let headings: Vec<String> = headings
        .iter()
        .map(|name| name.trim_start_matches(MARK).to_owned())
        .collect();
    for record in reader.records() {
        let record = record.map_err(|fault| {
            let line = fault.position().map_or(0, csv::Position::line);
            bad(line, fault.to_string())
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let cells = headings.iter().cloned();
        let cells = cells.zip(record.iter().map(|cell| Value::from(cell.to_owned())));
        each(line as usize, &cells.collect())?;
    }
    Ok(())
}

fn of_json(path: &Path, each: &mut dyn FnMut(usize, &Fields) -> Result<()>) -> Result<()> {
    let value = json_of(path, MAX_BYTES)?;
    let no_table = |fault: &str| {
        Error::Outside(OutsideFault::NoAnswers {
            path: path.into(),
            fault: fault.to_owned(),
        })
    };
    match value {
        Value::Array(rows) => {
            for (index, row) in rows.iter().enumerate() {
                match row {
                    Value::Object(fields) => each(index + 1, fields)?,
                    _ => return Err(no_table("an entry of its list is no object")),
                }
            }
            Ok(())
        }
        // Columns of objects, from a row's label to its cell.
        Value::Object(columns) => {
            let mut cells: Map<String, Value> = Map::new();
            for (name, column) in columns {
                let Value::Object(column) = column else {
                    return Err(no_table(
                        "it is neither a list of rows nor an object of columns; results in sum hold no answers",
                    ));
                };
                for (label, cell) in column {
                    let row = cells
                        .entry(label)
                        .or_insert_with(|| Value::Object(Map::new()));
                    if let Value::Object(row) = row {
                        row.insert(name.clone(), cell);
                    }
                }
            }
            for (index, row) in cells.values().enumerate() {
                if let Value::Object(fields) = row {
                    each(index + 1, fields)?;
                }
            }
            Ok(())
        }
        _ => Err(no_table(
            "it is neither a list of rows nor an object of columns",
        )),
    }
}
