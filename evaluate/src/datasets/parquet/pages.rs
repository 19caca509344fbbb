//! Pages of a column: their places and their values.

use std::ops::Range;

use super::footer::{Chunk, Leaf};
use super::hybrid;
use super::thrift::{self, Fault, Value};
use crate::datasets::packed::PackedFile;
use crate::{Error, Result};

/// The largest page that is decoded. Writers end a page at one mebibyte, or with the 1024th value.
pub(super) const MAX_PAGE_BYTES: u64 = 512 << 20;

/// Bytes of a header that are read at first, and at most: a header may hold the least and the greatest value.
const HEADER_BYTES: u64 = 1 << 10;
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The kind of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The values that others refer to.
    Dictionary,
    /// Levels and values, compressed together.
    First,
    /// Levels of these numbers of bytes (repetition, definition), and values that may be compressed.
    Second { levels: [usize; 2], is_folded: bool },
}

/// A page, by its header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) form: Form,
    pub(super) encoding: i64,
    /// Values with nulls and empty lists.
    pub(super) n_values: usize,
    start: u64,
    n_folded: usize,
    n_unfolded: usize,
    checksum: Option<u32>,
}

/// Why a page cannot be read: an error of the file system, or a fault of the page in words.
#[derive(Debug)]
pub(super) enum Trouble {
    Error(Error),
    Fault(String),
}

impl From<String> for Trouble {
    fn from(fault: String) -> Self {
        Self::Fault(fault)
    }
}

impl From<&str> for Trouble {
    fn from(fault: &str) -> Self {
        Self::Fault(fault.to_owned())
    }
}

/// The pages of a chunk, by their headers alone.
pub(super) fn scan(file: &PackedFile, chunk: &Chunk) -> Result<Vec<Page>, Trouble> {
    let mut pages = Vec::new();
    let (mut at, mut n_values) = (chunk.start, 0_u64);
    while at < chunk.end && n_values < chunk.n_values {
        let (header, length) = header(file, at, chunk.end)?;
        let start = at + length as u64;
        let page = page(&header, start, chunk)?;
        at = start + page.map_or_else(|| header.count(3).unwrap_or(0), |page| page.n_folded as u64);
        if let Some(page) = page {
            if page.form != Form::Dictionary {
                n_values += page.n_values as u64;
            }
            pages.push(page);
        }
    }
    match n_values == chunk.n_values {
        true => Ok(pages),
        false => Err(Trouble::Fault(format!(
            "its pages hold {n_values} values, its footer says {}",
            chunk.n_values
        ))),
    }
}

fn header(file: &PackedFile, at: u64, end: u64) -> Result<(Value, usize), Trouble> {
    let mut n_bytes = HEADER_BYTES;
    loop {
        let to = end.min(at + n_bytes);
        let bytes = file.read(at..to);
        let bytes = bytes.map_err(Trouble::Error)?;
        match thrift::read(&bytes) {
            Ok(header) => return Ok(header),
            Err(Fault::Short) if to < end && n_bytes < MAX_HEADER_BYTES => n_bytes *= 4,
            Err(_) => return Err("the header of a page is damaged".into()),
        }
    }
}

/// The page of a header; none of an index, which is passed over.
fn page(header: &Value, start: u64, chunk: &Chunk) -> Result<Option<Page>, Trouble> {
    let damaged = || Trouble::from("the header of a page is damaged");
    let n_folded = header.count(3).ok_or_else(damaged)?;
    if n_folded > chunk.end.saturating_sub(start) {
        return Err("a page reaches beyond its column".into());
    }
    let n_unfolded = header.count(2).ok_or_else(damaged)?;
    if n_unfolded > MAX_PAGE_BYTES {
        let fault = format!("a page has {n_unfolded} bytes; at most {MAX_PAGE_BYTES} are decoded");
        return Err(fault.into());
    }
    let length = |about: &Value, id: i64| {
        let length = about.count(id).filter(|length| *length <= n_unfolded);
        length.ok_or_else(damaged)
    };
    let (form, about, encoding) = match header.integer(1) {
        Some(0) => (Form::First, header.field(5), 2),
        Some(1) => return Ok(None),
        Some(2) => (Form::Dictionary, header.field(7), 2),
        Some(3) => {
            let about = header.field(8).ok_or_else(damaged)?;
            let levels = [length(about, 6)? as usize, length(about, 5)? as usize];
            let is_folded = about.field(7) != Some(&Value::Flag(false));
            (Form::Second { levels, is_folded }, Some(about), 4)
        }
        _ => return Err("a page is of an unknown kind".into()),
    };
    let about = about.ok_or_else(damaged)?;
    let n_values = about.count(1).ok_or_else(damaged)?;
    // A page of a dictionary has a byte for each value at least.
    let limit = match form {
        Form::Dictionary => n_unfolded,
        _ => chunk.n_values,
    };
    if n_values > limit {
        return Err("a page has more values than its column".into());
    }
    Ok(Some(Page {
        form,
        encoding: about.integer(encoding).ok_or_else(damaged)?,
        n_values: n_values as usize,
        start,
        n_folded: n_folded as usize,
        n_unfolded: n_unfolded as usize,
        checksum: header.integer(4).map(|sum| sum as u32),
    }))
}

/// The values in a page.
pub(super) struct Body {
    /// The page, decompressed.
    pub(super) bytes: Vec<u8>,
    /// Where its values are.
    pub(super) values: Range<usize>,
    /// For each value: which list it goes on, 0 for a new row. Empty without lists.
    pub(super) repetitions: Vec<u32>,
    /// For each value: how much of it is there. Empty where all are.
    pub(super) definitions: Vec<u32>,
    /// Values that are there.
    pub(super) n_present: usize,
}

/// Reads and decompresses a page.
pub(super) fn body(
    file: &PackedFile,
    chunk: &Chunk,
    leaf: &Leaf,
    page: &Page,
) -> Result<Body, Trouble> {
    let codec = chunk.codec.clone().map_err(|name| {
        format!("it is compressed with {name}; snappy, gzip, LZ4 and plain pages are read")
    })?;
    let folded = file.read(page.start..page.start + page.n_folded as u64);
    let folded = folded.map_err(Trouble::Error)?;
    if let Some(checksum) = page.checksum
        && crc32fast::hash(&folded) != checksum
    {
        return Err("a page is corrupt: its checksum is another".into());
    }
    let repetition = leaf.lists.len() as u32;
    let levels = |bytes: &[u8], max: u32| {
        let width = (u32::BITS - max.leading_zeros()) as u8;
        let read = hybrid::read(bytes, width, page.n_values);
        let read = read.filter(|levels| levels.iter().all(|level| *level <= max));
        read.ok_or_else(|| Trouble::from("the levels of a page are damaged"))
    };
    let (mut repetitions, mut definitions) = (Vec::new(), Vec::new());
    let (bytes, start) = match page.form {
        Form::Dictionary => (codec.unfold(&folded, page.n_unfolded)?, 0),
        Form::First => {
            let bytes = codec.unfold(&folded, page.n_unfolded)?;
            let mut start = 0;
            let mut next = |max: u32| -> Result<Vec<u32>, Trouble> {
                let cut = || Trouble::from("a page ends within its levels");
                let length = bytes.get(start..).and_then(<[u8]>::first_chunk::<4>);
                let length = u32::from_le_bytes(*length.ok_or_else(cut)?) as usize;
                let end = (start + 4).checked_add(length).ok_or_else(cut)?;
                let found = bytes.get(start + 4..end).ok_or_else(cut)?;
                start = end;
                levels(found, max)
            };
            if repetition > 0 {
                repetitions = next(repetition)?;
            }
            if leaf.definition > 0 {
                definitions = next(leaf.definition)?;
            }
            (bytes, start)
        }
        Form::Second {
            levels: [first, second],
            is_folded,
        } => {
            let start = first + second;
            let cut = || Trouble::from("a page ends within its levels");
            let found = folded.get(..start).ok_or_else(cut)?;
            let n = page.n_unfolded.checked_sub(start).ok_or_else(cut)?;
            if repetition > 0 {
                repetitions = levels(&found[..first], repetition)?;
            }
            if leaf.definition > 0 {
                definitions = levels(&found[first..], leaf.definition)?;
            }
            // Without values there is nothing to decompress.
            let values = match is_folded && n > 0 {
                true => codec.unfold(&folded[start..], n)?,
                false => folded[start..].to_vec(),
            };
            (values, 0)
        }
    };
    let is_present = |level: &&u32| **level == leaf.definition;
    let n_present = match leaf.definition {
        0 => page.n_values,
        _ => definitions.iter().filter(is_present).count(),
    };
    Ok(Body {
        values: start..bytes.len(),
        bytes,
        repetitions,
        definitions,
        n_present,
    })
}
