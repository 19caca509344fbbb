//! The metadata of a GGUF file: entries with types. Long strings and arrays stay in the file.

use std::fmt::Write as _;
use std::path::Path;

use super::RECORD_KEY;
use super::cursor::Cursor;
use crate::io::source::PlainValue;
use crate::{GgufFault, Result};

/// The longest string that is kept in memory.
const MAX_TEXT_BYTES: u64 = 1 << 16;

/// The most elements of an array that are shown one by one, and how many of a longer one.
const MAX_SHOWN: u64 = 64;
const N_FIRST: u64 = 4;

/// The longest string among the elements of an array that is shown.
const MAX_SHOWN_BYTES: u64 = 256;

/// The type of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

/// The number of an array in files.
pub(crate) const ARRAY: u32 = 9;

impl Scalar {
    fn of(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value; `None` for strings.
    const fn n_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text => None,
        }
    }

    /// The plural of its name.
    const fn plural(self) -> &'static str {
        match self {
            Self::Text => "strings",
            Self::Bool => "booleans",
            _ => "numbers",
        }
    }
}

/// The value of an entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// A value by itself.
    One(PlainValue),
    /// A string that is longer than [`MAX_TEXT_BYTES`].
    LongText {
        /// Where it begins in the file, behind its length.
        start: u64,
        /// Its bytes.
        n_bytes: u64,
    },
    /// An array.
    Array {
        /// The type of its elements.
        kind: Scalar,
        /// Their number.
        n: u64,
        /// Where the first begins.
        start: u64,
        /// The first elements.
        first: Vec<PlainValue>,
    },
}

impl Value {
    /// The value as it is shown: long arrays by their first elements.
    pub(crate) fn shown(&self) -> PlainValue {
        match self {
            Self::One(value) => value.clone(),
            Self::LongText { n_bytes, .. } => {
                PlainValue::Text(format!("a string of {n_bytes} bytes"))
            }
            Self::Array { kind, n, first, .. } => {
                let mut text = String::new();
                let is_whole = first.len() as u64 == *n;
                if !is_whole {
                    let _ = write!(text, "{n} {}: ", kind.plural());
                }
                text.push('[');
                for (position, value) in first.iter().enumerate() {
                    let comma = if position > 0 { ", " } else { "" };
                    let _ = write!(text, "{comma}{}", in_json(value));
                }
                text.push_str(if is_whole { "]" } else { ", …]" });
                PlainValue::Text(text)
            }
        }
    }
}

fn in_json(value: &PlainValue) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The entries, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata(pub(crate) Vec<(String, Value)>);

impl Metadata {
    /// Reads this number of entries.
    pub(super) fn read(cursor: &mut Cursor<'_>, n_entries: u64) -> Result<Self> {
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        for _ in 0..n_entries {
            let key = cursor.name("key")?;
            if !seen.insert(key.clone()) {
                return Err(GgufFault::RepeatedEntry {
                    path: cursor.path.into(),
                    key,
                }
                .into());
            }
            let value = read_value(cursor, &key)?;
            entries.push((key, value));
        }
        Ok(Self(entries))
    }

    /// The entry of this name.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let mut entries = self.0.iter();
        entries.find(|(own, _)| own == key).map(|(_, value)| value)
    }

    /// The whole number under this name; `None` if there is none, or anything else.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::One(PlainValue::Integer(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The string under this name.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::One(PlainValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let refused = |path: &Path, kind: String| GgufFault::EntryType {
        path: path.into(),
        key: key.to_owned(),
        kind,
    };
    let id = cursor.u32("a type")?;
    if id != ARRAY {
        let kind = Scalar::of(id).ok_or_else(|| refused(cursor.path, id.to_string()))?;
        if kind != Scalar::Text {
            return Ok(Value::One(read_scalar(cursor, kind)?));
        }
        let n_bytes = cursor.length("a string")?;
        if n_bytes > MAX_TEXT_BYTES && key != RECORD_KEY {
            let start = cursor.at();
            cursor.skip("a string", n_bytes)?;
            return Ok(Value::LongText { start, n_bytes });
        }
        return Ok(Value::One(text(cursor, n_bytes)?));
    }
    let id = cursor.u32("a type")?;
    if id == ARRAY {
        return Err(refused(cursor.path, "array of arrays".into()).into());
    }
    let kind = Scalar::of(id).ok_or_else(|| refused(cursor.path, format!("array of {id}")))?;
    let n = cursor.u64("a number of elements")?;
    // A string has at least its length.
    let least = kind.n_bytes().unwrap_or(size_of::<u64>() as u64);
    let limit = cursor.n_left() / least;
    if n > limit {
        return Err(GgufFault::Count {
            path: cursor.path.into(),
            what: "elements of an array",
            n,
            limit,
        }
        .into());
    }
    let start = cursor.at();
    let n_first = if n > MAX_SHOWN { N_FIRST } else { n };
    let mut first = Vec::new();
    for position in 0..n {
        if kind == Scalar::Text {
            let n_bytes = cursor.length("a string")?;
            match position < n_first && n_bytes <= MAX_SHOWN_BYTES {
                true => first.push(text(cursor, n_bytes)?),
                false => cursor.skip("a string", n_bytes)?,
            }
        } else if position < n_first {
            first.push(read_scalar(cursor, kind)?);
        } else {
            cursor.skip("an array", least * (n - position))?;
            break;
        }
    }
    Ok(Value::Array {
        kind,
        n,
        start,
        first,
    })
}

/// Text, where bytes that are none are replaced: what it is for is to be shown.
fn text(cursor: &mut Cursor<'_>, n_bytes: u64) -> Result<PlainValue> {
    let bytes = cursor.bytes("a string", n_bytes)?;
    Ok(PlainValue::Text(
        String::from_utf8_lossy(&bytes).into_owned(),
    ))
}

fn read_scalar(cursor: &mut Cursor<'_>, kind: Scalar) -> Result<PlainValue> {
    let what = "a number";
    let integer = |n: i64| PlainValue::Integer(n);
    Ok(match kind {
        Scalar::U8 => integer(i64::from(cursor.array::<1>(what)?[0])),
        Scalar::I8 => integer(i64::from(i8::from_le_bytes(cursor.array(what)?))),
        Scalar::U16 => integer(i64::from(u16::from_le_bytes(cursor.array(what)?))),
        Scalar::I16 => integer(i64::from(i16::from_le_bytes(cursor.array(what)?))),
        Scalar::U32 => integer(i64::from(u32::from_le_bytes(cursor.array(what)?))),
        Scalar::I32 => integer(i64::from(i32::from_le_bytes(cursor.array(what)?))),
        Scalar::I64 => integer(i64::from_le_bytes(cursor.array(what)?)),
        Scalar::U64 => {
            let n = u64::from_le_bytes(cursor.array(what)?);
            i64::try_from(n).map_or_else(|_| PlainValue::Text(n.to_string()), integer)
        }
        Scalar::F32 => PlainValue::Float(widened(f32::from_le_bytes(cursor.array(what)?))),
        Scalar::F64 => PlainValue::Float(f64::from_le_bytes(cursor.array(what)?)),
        Scalar::Bool => PlainValue::Bool(cursor.array::<1>(what)?[0] != 0),
        Scalar::Text => {
            let n_bytes = cursor.length("a string")?;
            text(cursor, n_bytes)?
        }
    })
}

/// The number whose shortest decimal is that of `value`: settings such as `1e-5` are stored in f32, and meant in decimal.
fn widened(value: f32) -> f64 {
    let decimal = value.to_string();
    decimal.parse().unwrap_or_else(|_| f64::from(value))
}
