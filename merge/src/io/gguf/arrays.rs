//! Arrays and long strings of the metadata, which the header leaves in the file.

use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use super::header::Header;
use super::metadata::{Metadata, Scalar, Value};
use crate::io::read_at::ReadAt;
use crate::io::{open_bytes, source::PlainValue};
use crate::{GgufFault, Result};

/// The most strings of an array that are read: several times the tokens of any model.
const MAX_TEXTS: u64 = 1 << 22;

/// The metadata of a file, with all of their arrays at hand.
pub(crate) struct Arrays {
    path: PathBuf,
    file: Box<dyn ReadAt>,
    metadata: Metadata,
}

impl Arrays {
    /// Opens a file by its path or address.
    ///
    /// # Errors
    /// When it cannot be read, and [`GgufFault`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_bytes(path)?;
        let Header { metadata, .. } = Header::read(path, file.as_ref())?;
        Ok(Self {
            path: path.into(),
            file,
            metadata,
        })
    }

    /// The string under this name, however long; `None` if there is none, or anything else.
    ///
    /// # Errors
    /// When the file cannot be read, and [`GgufFault::NotText`].
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>> {
        match self.metadata.get(key) {
            Some(Value::One(PlainValue::Text(text))) => Ok(Some(text.clone())),
            Some(Value::LongText { start, n_bytes }) => {
                let mut cursor = self.at(*start);
                self.string(&mut cursor, *n_bytes).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The strings of an array; `None` if there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read, [`GgufFault::NotText`], and [`GgufFault::Fact`] for anything but strings.
    pub(crate) fn texts(&self, key: &str, wanted: &str) -> Result<Option<Vec<String>>> {
        let (n, start) = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array {
                kind: Scalar::Text,
                n,
                start,
                ..
            }) if *n <= MAX_TEXTS => (*n, *start),
            Some(_) => return Err(self.fault(key, "is no array of strings", wanted)),
        };
        let mut cursor = self.at(start);
        let mut texts = Vec::new();
        for _ in 0..n {
            let n_bytes = cursor.length("a string")?;
            texts.push(self.string(&mut cursor, n_bytes)?);
        }
        Ok(Some(texts))
    }

    /// The numbers of an array of `i32`; `None` if there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read, and [`GgufFault::Fact`] for anything but such numbers.
    pub(crate) fn integers(&self, key: &str, wanted: &str) -> Result<Option<Vec<i32>>> {
        let words = self.words(key, &[Scalar::I32, Scalar::U32], "whole numbers", wanted)?;
        Ok(words.map(|words| words.into_iter().map(i32::from_le_bytes).collect()))
    }

    /// The numbers of an array of `f32`; `None` if there is none of this name.
    ///
    /// # Errors
    /// As [`Arrays::integers`].
    pub(crate) fn floats(&self, key: &str, wanted: &str) -> Result<Option<Vec<f32>>> {
        let words = self.words(key, &[Scalar::F32], "numbers", wanted)?;
        Ok(words.map(|words| words.into_iter().map(f32::from_le_bytes).collect()))
    }

    /// The elements of an array whose type has four bytes.
    fn words(
        &self,
        key: &str,
        kinds: &[Scalar],
        what: &str,
        wanted: &str,
    ) -> Result<Option<Vec<[u8; 4]>>> {
        let (n, start) = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array { kind, n, start, .. }) if kinds.contains(kind) => (*n, *start),
            Some(_) => return Err(self.fault(key, &format!("is no array of {what}"), wanted)),
        };
        let mut cursor = self.at(start);
        let bytes = cursor.bytes("an array", n.saturating_mul(4))?;
        Ok(Some(bytes.as_chunks().0.to_vec()))
    }

    fn at(&self, start: u64) -> Cursor<'_> {
        Cursor::new(&self.path, self.file.as_ref(), start)
    }

    fn string(&self, cursor: &mut Cursor<'_>, n_bytes: u64) -> Result<String> {
        let at = cursor.at();
        String::from_utf8(cursor.bytes("a string", n_bytes)?).map_err(|_| {
            GgufFault::NotText {
                path: self.path.clone(),
                what: "string",
                at,
            }
            .into()
        })
    }

    fn fault(&self, key: &str, found: &str, wanted: &str) -> crate::Error {
        GgufFault::Fact {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            wanted: wanted.to_owned(),
        }
        .into()
    }
}
