//! Text files, with a limit on their size.

use std::io::BufRead;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::json_place::Place;
use crate::text::file::{MARK, each_line, open};
use crate::{Error, Result};

/// The largest file that is read; VQA v2's training annotations, the largest in use, have 0.4 GB.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// The largest file in which an error names the faulty entry: to find it, the whole text is read.
const MAX_TOLD_BYTES: u64 = 512 << 20;

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Reads a JSON file of a known form, without holding its text. It skips a byte-order mark. An error
/// names the row, the id and the key of the faulty entry.
pub fn json<T: DeserializeOwned>(path: &Path, what: &'static str) -> Result<T> {
    let mut file = open(path, MAX_FILE_BYTES)?;
    let failed = |source| Error::io("read", path, source);
    let n_mark = match file
        .fill_buf()
        .map_err(failed)?
        .starts_with(MARK.as_bytes())
    {
        true => MARK.len(),
        false => 0,
    };
    file.consume(n_mark);
    let fault = match serde_json::from_reader(file) {
        Ok(read) => return Ok(read),
        Err(fault) => fault,
    };
    let n_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if fault.is_io() || fault.is_eof() || n_bytes > MAX_TOLD_BYTES {
        return Err(Error::Json {
            path: path.into(),
            what,
            source: fault,
        });
    }
    let text = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    let text = text.strip_prefix(MARK).unwrap_or(&text);
    let place = Place::of(text, fault.line(), fault.column());
    let fault = match place.is_not_a_number {
        true => "is NaN or infinite, which JSON cannot say; pandas and Python write NaN for a \
                 missing value"
            .to_owned(),
        false => fault
            .to_string()
            .replace("expected i64", "expected a whole number"),
    };
    Err(Error::JsonEntry {
        path: path.into(),
        what,
        fault: format!("{}{}", short(place.in_words()), short(fault)),
    })
}

/// The most bytes of a text of the file that a message repeats.
const MAX_SHOWN_BYTES: usize = 300;

/// A message whose quotation of a long text is cut.
fn short(mut text: String) -> String {
    if text.len() > MAX_SHOWN_BYTES {
        let n_bytes = text.len();
        let end = text.split_off(text.floor_char_boundary(n_bytes - MAX_SHOWN_BYTES / 3));
        text.truncate(text.floor_char_boundary(2 * MAX_SHOWN_BYTES / 3));
        text = format!("{text} … {end}");
    }
    text
}

/// Calls `each` with every line that is not blank and its number, from 1.
pub fn lines(path: &Path, mut each: impl FnMut(usize, &str) -> Result<(), String>) -> Result<()> {
    let bad = |line, fault| Error::BadLine {
        path: path.into(),
        line,
        fault,
    };
    let file = open(path, MAX_FILE_BYTES)?;
    each_line(path, file, MAX_LINE_BYTES, bad, |line, text| {
        match text.trim() {
            "" => Ok(()),
            text => each(line, text).map_err(|fault| bad(line, fault)),
        }
    })
}
