//! GGUF files: names, shapes and metadata at once, data on request, codes as the numbers that they stand for.
//!
//! | module | holds |
//! |---|---|
//! | `cursor`, `metadata`, `header` | the header, read strictly |
//! | `types`, `blocks` | the types of elements, and their blocks as numbers |
//! | `arrays` | arrays of the metadata |
//! | `head` | the metadata of a file that is written |
//! | `parts` | models that are split into several files |

mod arrays;
pub(crate) mod blocks;
mod cursor;
pub(crate) mod head;
pub(crate) mod header;
pub(crate) mod metadata;
pub(crate) mod parts;
pub(crate) mod types;

use std::collections::BTreeMap;
use std::path::Path;

use self::header::{Described, Header};
use self::metadata::Metadata;
use self::types::{ElementType, Reading};
use super::read_at::ReadAt;
use super::safetensors::require_root;
use super::source::{
    Container, ObjectPath, OpenOptions, PathSegment, Root, SourceFile, SourceInfo, TensorEntry,
    TensorSource,
};
use crate::{DType, GgufFault, Result, TensorInfo};

pub(crate) use arrays::Arrays;
pub(crate) use parts::open;
pub(crate) use types::name_only;

/// The entry with the metadata of files that this program wrote, a JSON object of strings.
pub(crate) const RECORD_KEY: &str = "vlmerge.metadata";

/// Opens one file, a part or a whole.
fn open_one(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<(GgufFile, Metadata)> {
    require_root(path, options)?;
    let Header { metadata, tensors } = Header::read(path, file.as_ref())?;
    let entries: Vec<TensorEntry> = tensors.iter().map(entry).collect();
    let n_bytes = tensors.iter().map(|tensor| tensor.n_bytes).sum();
    let record = metadata.text(RECORD_KEY);
    let record = record.and_then(|text| serde_json::from_str(text).ok());
    let values = metadata.0.iter().filter(|(key, _)| key != RECORD_KEY);
    let info = SourceInfo {
        path: path.into(),
        container: Container::Gguf,
        files: vec![SourceFile::of(path, file.as_ref())],
        metadata: record.unwrap_or_else(BTreeMap::new),
        roots: vec![Root {
            name: String::new(),
            n_tensors: tensors.len(),
            n_bytes,
        }],
        root: String::new(),
        values: values
            .map(|(key, value)| {
                let path = ObjectPath(vec![PathSegment::Key(key.clone())]);
                (path, value.shown())
            })
            .collect(),
        opaque: Vec::new(),
    };
    let file = GgufFile {
        file,
        info,
        entries,
        tensors,
    };
    Ok((file, metadata))
}

fn entry(tensor: &Described) -> TensorEntry {
    let info = TensorInfo {
        dtype: tensor.kind.dtype(),
        shape: tensor.shape.clone(),
    };
    TensorEntry::named(tensor.name.clone(), info)
}

/// A file whose header was found to be sound.
struct GgufFile {
    file: Box<dyn ReadAt>,
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    tensors: Vec<Described>,
}

impl GgufFile {
    /// Reads bytes of a tensor, from its byte `first` on.
    fn bytes(&self, tensor: &Described, first: u64, out: &mut [u8]) -> Result<()> {
        let start = tensor.start + first;
        let whole = tensor.start..tensor.start + tensor.n_bytes;
        self.file.read_part(out, start, whole).map_err(|source| {
            GgufFault::ReadTensor {
                path: self.info.path.clone(),
                key: tensor.name.clone(),
                first: start,
                end: start + out.len() as u64,
                source,
            }
            .into()
        })
    }

    /// Reads elements of a tensor of blocks.
    fn numbers(
        &self,
        tensor: &Described,
        decode: blocks::Decode,
        first: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let ElementType {
            n_elements,
            n_bytes,
            ..
        } = *tensor.kind;
        let (from, end) = (first / n_elements, (first + out.len()).div_ceil(n_elements));
        let mut bytes = vec![0; (end - from) * n_bytes];
        self.bytes(tensor, (from * n_bytes) as u64, &mut bytes)?;
        let mut whole = vec![0.0; n_elements];
        let (mut skipped, mut rest) = (first % n_elements, out);
        for block in bytes.chunks_exact(n_bytes) {
            let n = (n_elements - skipped).min(rest.len());
            let (part, after) = rest.split_at_mut(n);
            if n == n_elements {
                decode(block, part);
            } else {
                decode(block, &mut whole);
                part.copy_from_slice(&whole[skipped..skipped + n]);
            }
            (skipped, rest) = (0, after);
        }
        Ok(())
    }
}

impl TensorSource for GgufFile {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn stored_dtype(&self, index: usize) -> DType {
        match self.is_computed(index) {
            // Codes are no dtype to write: bf16 is what such models are made from.
            true => DType::BF16,
            false => self.entries[index].info.dtype,
        }
    }

    fn stored_as(&self, index: usize) -> Option<&str> {
        let kind = self.tensors[index].kind;
        kind.is_quantized().then_some(kind.name)
    }

    fn is_computed(&self, index: usize) -> bool {
        self.tensors[index].kind.is_quantized()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let tensor = &self.tensors[index];
        match tensor.kind.reading {
            Reading::Plain(dtype) => self.bytes(tensor, dtype.bytes_of(first) as u64, out),
            Reading::Blocks(decode) => {
                if let Ok(values) = bytemuck::try_cast_slice_mut(out) {
                    return self.numbers(tensor, decode, first, values);
                }
                let mut values = vec![0.0f32; out.len() / size_of::<f32>()];
                self.numbers(tensor, decode, first, &mut values)?;
                out.copy_from_slice(bytemuck::cast_slice(&values));
                Ok(())
            }
            Reading::NameOnly => Err(GgufFault::Unreadable {
                path: self.info.path.clone(),
                key: tensor.name.clone(),
                scheme: tensor.kind.name,
            }
            .into()),
        }
    }
}
