//! The layout of a safetensors file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Contents;
use super::layout::{Layout, Piece};
use super::names::without_aliases;
use crate::io::aliases::{self, ALIASES_KEY};
use crate::io::safetensors::{MAX_HEADER_BYTES, METADATA_KEY};
use crate::{Error, Result, WriteFault};

/// Data begin at a multiple of this, so that a reader may map them as elements of any dtype.
const ALIGNMENT_BYTES: usize = 8;

/// Where everything in a file stands.
pub(super) struct SafetensorsLayout {
    /// The tensors' part of the header; the metadata are known only at the end.
    entries: Map<String, Value>,
    /// The metadata's record of other names, if there are any.
    aliases: Option<String>,
    /// Bytes of the header with its length and its padding.
    n_header_bytes: usize,
    starts: Vec<u64>,
    n_bytes: u64,
}

impl SafetensorsLayout {
    /// Lays out the tensors in the order given, with room for `metadata`.
    pub(super) fn new(
        path: &Path,
        contents: Contents<'_>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let tensors = contents.tensors;
        let mut entries = Map::new();
        let mut starts = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for (name, info) in tensors {
            if name == METADATA_KEY {
                return Err(Error::Write(WriteFault::ReservedName {
                    path: path.into(),
                    key: name.clone(),
                }));
            }
            let first = end;
            end += info.n_bytes();
            starts.push(first);
            let entry = json!({
                "dtype": info.dtype.name(),
                "shape": info.shape,
                "data_offsets": [first, end],
            });
            entries.insert(name.clone(), entry);
        }
        let has_aliases = !contents.aliases.is_empty();
        let aliases = has_aliases.then(|| aliases::to_text(contents.aliases));
        let n_text_bytes = render(&entries, metadata, aliases.as_ref()).len() as u64;
        if n_text_bytes > MAX_HEADER_BYTES - ALIGNMENT_BYTES as u64 {
            return Err(Error::Write(WriteFault::HeaderTooLong {
                path: path.into(),
                n_bytes: n_text_bytes,
            }));
        }
        let n_header_bytes = size_of::<u64>() + n_text_bytes as usize;
        let n_header_bytes = n_header_bytes.next_multiple_of(ALIGNMENT_BYTES);
        for start in &mut starts {
            *start += n_header_bytes as u64;
        }
        Ok(Self {
            entries,
            aliases,
            n_header_bytes,
            starts,
            n_bytes: n_header_bytes as u64 + end,
        })
    }
}

impl Layout for SafetensorsLayout {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    fn start(&self, index: usize) -> u64 {
        self.starts[index]
    }

    fn frame(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<Piece>> {
        let text = render(&self.entries, metadata, self.aliases.as_ref());
        let n_text_bytes = self.n_header_bytes - size_of::<u64>();
        if text.len() > n_text_bytes {
            return Err(Error::Write(WriteFault::MetadataGrew {
                path: path.into(),
                n_bytes: (text.len() - n_text_bytes) as u64,
            }));
        }
        let mut header = (n_text_bytes as u64).to_le_bytes().to_vec();
        header.extend(text.as_bytes());
        header.resize(self.n_header_bytes, b' ');
        Ok(vec![(0, header)])
    }
}

/// The header as JSON, metadata first.
fn render(
    entries: &Map<String, Value>,
    metadata: &BTreeMap<String, String>,
    aliases: Option<&String>,
) -> String {
    let mut metadata = without_aliases(metadata);
    metadata.extend(aliases.map(|text| (ALIASES_KEY.to_owned(), text.clone())));
    let mut text = String::from("{");
    if !metadata.is_empty() {
        text += &format!("{}:{}", json!(METADATA_KEY), json!(metadata));
    }
    for (name, entry) in entries {
        if text.len() > 1 {
            text.push(',');
        }
        text += &format!("{}:{entry}", json!(name));
    }
    text.push('}');
    text
}
