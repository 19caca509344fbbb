//! Lines of a file of texts.

use std::path::Path;

use crate::text::file;
use crate::{Error, Result};

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The lines of a UTF-8 file, blank ones too, without their breaks and a byte-order mark.
///
/// # Errors
/// When the file cannot be read, [`Error::BadLine`] when a line is no UTF-8 or too long, and
/// [`Error::Empty`] when there is none.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let bad = |line, fault| Error::BadLine {
        path: path.into(),
        line,
        fault,
    };
    let mut lines = Vec::new();
    let texts = file::open(path, u64::MAX)?;
    file::each_line(path, texts, MAX_LINE_BYTES, bad, |_, text| {
        lines.push(text.to_owned());
        Ok(())
    })?;
    match lines.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "lines",
        }),
        false => Ok(lines),
    }
}
