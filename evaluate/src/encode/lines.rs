//! Lines of a file of texts.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::{Error, Result};

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The lines of a UTF-8 file, blank ones too, without their breaks and a byte-order mark.
///
/// # Errors
/// When the file cannot be read, [`Error::BadLine`] when a line is no UTF-8 or too long, and
/// [`Error::Empty`] when there is none.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("open", path, source);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let mut file = BufReader::new(std::fs::File::open(path).map_err(failed)?);
    let mut lines: Vec<String> = Vec::new();
    loop {
        let bad = |fault: String| Error::BadLine {
            path: path.into(),
            line: lines.len() + 1,
            fault,
        };
        let mut bytes = Vec::new();
        let mut limited = Read::by_ref(&mut file).take(MAX_LINE_BYTES + 1);
        let n = limited.read_until(b'\n', &mut bytes);
        if n.map_err(|source| Error::io("read", path, source))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(bad(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8".into()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let text = match lines.is_empty() {
            true => text.strip_prefix('\u{feff}').unwrap_or(text),
            false => text,
        };
        lines.push(text.to_owned());
    }
    match lines.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "lines",
        }),
        false => Ok(lines),
    }
}
