//! Answers as an object of JSON a line.

use std::path::Path;

use serde_json::Value;

use super::record::Fields;
use crate::error::OutsideFault;
use crate::outside::json;
use crate::text::file;
use crate::{Error, Result};

/// The longest line that is read: prompts of long texts with their examples.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Calls `each` with every line that is not blank and its number, from 1.
pub fn read(path: &Path, each: &mut dyn FnMut(usize, &Fields) -> Result<()>) -> Result<()> {
    let bad = |line, fault| {
        Error::Outside(OutsideFault::BadRecord {
            path: path.into(),
            line,
            fault,
        })
    };
    // Lines are read one by one: the whole may have any size.
    let lines = file::open(path, u64::MAX)?;
    file::each_line(path, lines, MAX_LINE_BYTES, bad, |line, text| {
        let text = text.trim();
        if text.is_empty() {
            return Ok(());
        }
        match json::parse(text) {
            Ok(Value::Object(fields)) => each(line, &fields),
            Ok(_) => Err(bad(line, "is no object".to_owned())),
            Err(fault) => Err(bad(line, format!("is no JSON: {fault}"))),
        }
    })
}
