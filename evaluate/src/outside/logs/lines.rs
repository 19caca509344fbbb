//! Answers as an object of JSON a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::record::Fields;
use crate::error::OutsideFault;
use crate::outside::json;
use crate::{Error, Result};

/// The longest line that is read: prompts of long texts with their examples.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Calls `each` with every line that is not blank and its number, from 1.
pub fn read(path: &Path, each: &mut dyn FnMut(usize, &Fields) -> Result<()>) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut bytes = Vec::new();
    for line in 1.. {
        let bad = |fault: String| {
            Error::Outside(OutsideFault::BadRecord {
                path: path.into(),
                line,
                fault,
            })
        };
        bytes.clear();
        let n_read = file
            .by_ref()
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| Error::io("read", path, source))?;
        if n_read == 0 {
            break;
        }
        if n_read as u64 > MAX_LINE_BYTES {
            return Err(bad(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|fault| bad(fault.to_string()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
        if text.is_empty() {
            continue;
        }
        match json::parse(text) {
            Ok(Value::Object(fields)) => each(line, &fields)?,
            Ok(_) => return Err(bad("is no object".to_owned())),
            Err(fault) => return Err(bad(format!("is no JSON: {fault}"))),
        }
    }
    Ok(())
}
