//! The layout of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::Contents;
use super::layout::{Layout, Piece};
use super::names::without_aliases;
use crate::io::gguf::RECORD_KEY;
use crate::io::gguf::head::{GgufHead, put_text, text_entry};
use crate::io::gguf::header::{ALIGNMENT, MAGIC, MAX_AXES};
use crate::io::gguf::parts::{COUNT, MAX_PARTS, NUMBER, TENSORS};
use crate::io::gguf::types::{ElementType, Q8_0};
use crate::{Error, Result, TensorInfo, WriteFault};

/// The version of the format that is written.
const VERSION: u32 = 3;

/// The place of a file among the parts of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its number, from 0.
    pub(super) number: usize,
    /// The parts.
    pub(super) n_parts: usize,
    /// The tensors of all of them.
    pub(super) n_tensors: usize,
}

impl Place {
    /// The entries that readers of parts look for. The first part alone has those of the model.
    ///
    /// # Errors
    /// [`WriteFault::TooManyParts`].
    fn head(self, path: &Path, model: &GgufHead) -> Result<GgufHead> {
        let refused = || WriteFault::TooManyParts {
            path: path.into(),
            n_parts: self.n_parts,
            limit: MAX_PARTS as usize,
        };
        let allowed = |n: usize| u16::try_from(n).ok().filter(|n| u64::from(*n) <= MAX_PARTS);
        let n_parts = allowed(self.n_parts).ok_or_else(refused)?;
        let number = allowed(self.number).ok_or_else(refused)?;
        let mut head = match self.number {
            0 => model.clone(),
            _ => GgufHead::default(),
        };
        if n_parts > 1 {
            head.u16(NUMBER, number);
            head.u16(COUNT, n_parts);
            head.i32(TENSORS, self.n_tensors as i32);
        }
        Ok(head)
    }
}

/// Where everything in a file stands.
pub(super) struct GgufLayout {
    /// The file up to the record of metadata, which is known only at the end.
    before: Vec<u8>,
    /// Bytes of that record; `None` of a part without one.
    n_record_bytes: Option<usize>,
    /// The header's entries of the tensors, and the bytes that fill it up.
    behind: Vec<u8>,
    starts: Vec<u64>,
    n_bytes: u64,
}

impl GgufLayout {
    /// Lays out the tensors in the order given, behind the entries of `head` and room for `metadata`, which the first of
    /// several parts has.
    ///
    /// # Errors
    /// [`WriteFault::NoSuchDType`] and [`WriteFault::TooManyAxes`] for tensors that the format cannot hold, and
    /// [`WriteFault::TooManyParts`].
    pub(super) fn new(
        path: &Path,
        contents: Contents<'_>,
        head: &GgufHead,
        metadata: &BTreeMap<String, String>,
        place: Place,
    ) -> Result<Self> {
        let own = place.head(path, head)?;
        let (entries, n_entries) = own.entries();
        let n_record_bytes = (place.number == 0).then(|| record(metadata).len());
        let mut before = MAGIC.to_vec();
        before.extend(VERSION.to_le_bytes());
        before.extend((contents.tensors.len() as u64).to_le_bytes());
        before.extend((n_entries + u64::from(n_record_bytes.is_some())).to_le_bytes());
        before.extend(entries);
        let (mut behind, mut offsets, mut end) = (Vec::new(), Vec::new(), 0u64);
        for (name, info) in contents.tensors {
            let offset = end.next_multiple_of(ALIGNMENT);
            describe(path, head, name, info, offset, &mut behind)?;
            offsets.push(offset);
            end = offset + info.n_bytes();
        }
        let n_header_bytes = (before.len() + n_record_bytes.unwrap_or(0) + behind.len()) as u64;
        let data_start = n_header_bytes.next_multiple_of(ALIGNMENT);
        let n_behind = behind.len() + (data_start - n_header_bytes) as usize;
        behind.resize(n_behind, 0);
        Ok(Self {
            before,
            n_record_bytes,
            behind,
            starts: offsets.iter().map(|offset| data_start + offset).collect(),
            // Readers want the last tensor filled up, too.
            n_bytes: data_start + end.next_multiple_of(ALIGNMENT),
        })
    }
}

/// Puts what the header says of a tensor to `out`.
fn describe(
    path: &Path,
    head: &GgufHead,
    name: &str,
    info: &TensorInfo,
    offset: u64,
    out: &mut Vec<u8>,
) -> Result<()> {
    let (type_id, shape) = match head.coded(name) {
        Some(shape) => (Q8_0, shape),
        None => match ElementType::plain_of(info.dtype) {
            Some(kind) => (kind.id, info.shape.as_slice()),
            None => {
                return Err(Error::Write(WriteFault::NoSuchDType {
                    path: path.into(),
                    key: name.to_owned(),
                    dtype: info.dtype,
                }));
            }
        },
    };
    if shape.len() > MAX_AXES as usize {
        return Err(Error::Write(WriteFault::TooManyAxes {
            path: path.into(),
            key: name.to_owned(),
            n_axes: shape.len(),
        }));
    }
    // A number is an axis of one.
    let shape = if shape.is_empty() { &[1] } else { shape };
    put_text(out, name.as_bytes());
    out.extend((shape.len() as u32).to_le_bytes());
    for &size in shape.iter().rev() {
        out.extend((size as u64).to_le_bytes());
    }
    out.extend(type_id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(())
}

/// The entry with the metadata.
fn record(metadata: &BTreeMap<String, String>) -> Vec<u8> {
    text_entry(RECORD_KEY, &json!(without_aliases(metadata)).to_string())
}

impl Layout for GgufLayout {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn start(&self, index: usize) -> u64 {
        self.starts[index]
    }

    fn frame(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<Piece>> {
        let mut header = self.before.clone();
        if let Some(n_record_bytes) = self.n_record_bytes {
            let mut text = json!(without_aliases(metadata)).to_string();
            let n_bytes = text_entry(RECORD_KEY, &text).len();
            match n_record_bytes.checked_sub(n_bytes) {
                // Spaces behind an object are no part of it.
                Some(n_spaces) => text.push_str(&" ".repeat(n_spaces)),
                None => {
                    return Err(Error::Write(WriteFault::MetadataGrew {
                        path: path.into(),
                        n_bytes: (n_bytes - n_record_bytes) as u64,
                    }));
                }
            }
            header.extend(text_entry(RECORD_KEY, &text));
        }
        header.extend(&self.behind);
        Ok(vec![(0, header)])
    }
}
