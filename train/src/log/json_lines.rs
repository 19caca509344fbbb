//! One JSON object per line.
//!
//! `{"step":10,"examples":320,"values":{"loss":1.5}}`. A number that JSON has no word for is the string
//! `"NaN"`, `"inf"` or `"-inf"`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{Error, Result};

/// A file of JSON lines that grows.
pub struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Empties the file, or, with the step that a run goes on from, keeps the lines up to that step: what
    /// came after it will come again. A half line at the end, as a crash leaves it, goes too.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::LogLine`] when any other line is damaged: nothing has been changed then.
    pub fn open(path: &Path, resumed_at: Option<u64>) -> Result<Self> {
        let kept = match resumed_at {
            Some(step) => kept_bytes(path, step)?,
            None => 0,
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|file| file.set_len(kept).map(|()| file))
            .map_err(|e| Error::io("open", path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends a record, in one write.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let line = Line {
            step: record.step,
            examples: record.examples,
            values: (record.values.iter())
                .map(|(name, value)| (name.clone(), Number::of(*value)))
                .collect(),
        };
        let mut bytes = serde_json::to_vec(&line)
            .map_err(|e| Error::io("write", &self.path, std::io::Error::from(e)))?;
        bytes.push(b'\n');
        self.file
            .write_all(&bytes)
            .map_err(|e| Error::io("write", &self.path, e))
    }
}

/// The records of a file. A half line at the end is left out.
///
/// # Errors
/// [`Error::Io`]; [`Error::LogLine`] when a whole line is damaged.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    lines(path, &bytes)
        .map(|line| line.map(|(record, _)| record))
        .collect()
}

/// Bytes up to the first line after `step`. A file that is not there has none.
fn kept_bytes(path: &Path, step: u64) -> Result<u64> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let mut kept = 0;
    for line in lines(path, &bytes) {
        let (record, length) = line?;
        if record.step > step {
            break;
        }
        kept += length as u64;
    }
    Ok(kept)
}

/// The whole lines with their lengths in bytes.
fn lines<'a>(
    path: &'a Path,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<(Record, usize)>> + 'a {
    (bytes.split_inclusive(|byte| *byte == b'\n'))
        .filter(|line| line.ends_with(b"\n"))
        .enumerate()
        .map(|(index, bytes)| {
            let line: Line = serde_json::from_slice(bytes).map_err(|source| Error::LogLine {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
            let values = line.values.into_iter();
            let record = Record {
                step: line.step,
                examples: line.examples,
                values: values.map(|(name, value)| (name, value.value())).collect(),
            };
            Ok((record, bytes.len()))
        })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: u64,
    examples: u64,
    values: BTreeMap<String, Number>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(NotFinite),
}

#[derive(Serialize, Deserialize)]
enum NotFinite {
    NaN,
    #[serde(rename = "inf")]
    Infinite,
    #[serde(rename = "-inf")]
    MinusInfinite,
}

impl Number {
    fn of(value: f64) -> Self {
        if value.is_finite() {
            Self::Finite(value)
        } else if value.is_nan() {
            Self::Other(NotFinite::NaN)
        } else if value > 0.0 {
            Self::Other(NotFinite::Infinite)
        } else {
            Self::Other(NotFinite::MinusInfinite)
        }
    }

    fn value(self) -> f64 {
        match self {
            Self::Finite(value) => value,
            Self::Other(NotFinite::NaN) => f64::NAN,
            Self::Other(NotFinite::Infinite) => f64::INFINITY,
            Self::Other(NotFinite::MinusInfinite) => f64::NEG_INFINITY,
        }
    }
}
