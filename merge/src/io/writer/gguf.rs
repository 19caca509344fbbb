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
use crate::io::gguf::types::{ElementType, Q8_0};
use crate::{Error, Result, TensorInfo, WriteFault};

/// The version of the format that is written.
const VERSION: u32 = 3;

/// Where everything in a file stands.
pub(super) struct GgufLayout {
    /// The file up to the record of metadata, which is known only at the end.
    before: Vec<u8>,
    /// Bytes of that record.
    n_record_bytes: usize,
    /// What the header says of the tensors, and what fills it up.
    behind: Vec<u8>,
    starts: Vec<u64>,
    n_bytes: u64,
}

impl GgufLayout {
    /// Lays out the tensors in the order given, behind the entries of `head` and room for `metadata`.
    ///
    /// # Errors
    /// [`WriteFault::NoSuchDType`] and [`WriteFault::TooManyAxes`] for tensors that the format cannot hold.
    pub(super) fn new(
        path: &Path,
        contents: Contents<'_>,
        head: &GgufHead,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let (entries, n_entries) = head.entries();
        let mut before = MAGIC.to_vec();
        before.extend(VERSION.to_le_bytes());
        before.extend((contents.tensors.len() as u64).to_le_bytes());
        before.extend((n_entries + 1).to_le_bytes());
        before.extend(entries);
        let n_record_bytes = record(metadata).len();
        let (mut behind, mut offsets, mut end) = (Vec::new(), Vec::new(), 0u64);
        for (name, info) in contents.tensors {
            let offset = end.next_multiple_of(ALIGNMENT);
            describe(path, head, name, info, offset, &mut behind)?;
            offsets.push(offset);
            end = offset + info.n_bytes();
        }
        let n_header_bytes = (before.len() + n_record_bytes + behind.len()) as u64;
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
        let mut text = json!(without_aliases(metadata)).to_string();
        let n_bytes = text_entry(RECORD_KEY, &text).len();
        match self.n_record_bytes.checked_sub(n_bytes) {
            // Spaces behind an object are no part of it.
            Some(n_spaces) => text.push_str(&" ".repeat(n_spaces)),
            None => {
                return Err(Error::Write(WriteFault::MetadataGrew {
                    path: path.into(),
                    n_bytes: (n_bytes - self.n_record_bytes) as u64,
                }));
            }
        }
        let mut header = self.before.clone();
        header.extend(text_entry(RECORD_KEY, &text));
        header.extend(&self.behind);
        Ok(vec![(0, header)])
    }
}
