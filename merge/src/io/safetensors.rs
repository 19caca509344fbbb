//! Reading safetensors files: the header at once, data by positioned reads.

use std::fmt;
use std::path::Path;

use ::safetensors::SafeTensorError;
use ::safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::aliases::{self, Aliases};
use super::pairs::StringPairs;
use super::read_at::ReadAt;
use super::source::{Container, OpenOptions, Root};
use super::source::{SourceFile, SourceInfo, TensorEntry, TensorSource};
use crate::{DType, Error, Result, SafetensorsFault, TensorInfo};

/// Bytes of the header length at the start of a file.
const N_LENGTH_BYTES: u64 = 8;

/// The longest header that the format allows.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header key that belongs to string metadata and to no tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// Opens one safetensors file.
pub(crate) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    require_root(path, options)?;
    Ok(Box::new(SafetensorsFile::open(path, file)?))
}

/// Only pickles nest: here the root object is the only root.
pub(super) fn require_root(path: &Path, options: &OpenOptions) -> Result<()> {
    match options.root.as_deref() {
        None | Some("") => Ok(()),
        Some(root) => Err(Error::UnknownRoot {
            path: path.into(),
            root: root.to_owned(),
            roots: vec![String::new()],
        }),
    }
}

/// A safetensors file whose header was found to be sound.
struct SafetensorsFile {
    file: Box<dyn ReadAt>,
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    /// Where the data of each tensor start in the file.
    starts: Vec<u64>,
    aliases: Aliases,
}

impl SafetensorsFile {
    fn open(path: &Path, file: Box<dyn ReadAt>) -> Result<Self> {
        let n_file_bytes = file.n_bytes();
        let text = read_header(path, file.as_ref(), n_file_bytes)?;
        let data_start = N_LENGTH_BYTES + text.len() as u64;
        let header: Header =
            serde_json::from_str(&text).map_err(|source| SafetensorsFault::HeaderJson {
                path: path.into(),
                end: data_start,
                source,
            })?;
        let (tensors, starts) = check(path, &header.tensors, data_start, n_file_bytes)?;
        let n_bytes = n_file_bytes - data_start;
        let n_tensors = tensors.len();
        let metadata = header.metadata.into_map(path, METADATA_KEY)?;
        let aliases = aliases::recorded(path, &metadata, &tensors)?;
        let info = SourceInfo {
            path: path.into(),
            container: Container::Safetensors,
            files: vec![SourceFile::of(path, file.as_ref())],
            metadata,
            roots: vec![Root {
                name: String::new(),
                n_tensors,
                n_bytes,
            }],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        };
        Ok(Self {
            file,
            info,
            tensors,
            starts,
            aliases,
        })
    }
}

impl TensorSource for SafetensorsFile {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let entry = &self.tensors[index];
        let skipped = entry.info.dtype.bytes_of(first) as u64;
        assert!(
            skipped + out.len() as u64 <= entry.info.n_bytes(),
            "the range lies within the tensor"
        );
        let start = self.starts[index] + skipped;
        let whole = self.starts[index]..self.starts[index] + entry.info.n_bytes();
        self.file.read_part(out, start, whole).map_err(|source| {
            SafetensorsFault::ReadTensor {
                path: self.info.path.clone(),
                key: entry.path.to_string(),
                first: start,
                end: start + out.len() as u64,
                source,
            }
            .into()
        })
    }
}

/// The header's text, its length checked before anything is allocated for it.
fn read_header(path: &Path, file: &dyn ReadAt, n_file_bytes: u64) -> Result<String> {
    let mut length = [0; N_LENGTH_BYTES as usize];
    if n_file_bytes < N_LENGTH_BYTES {
        return Err(SafetensorsFault::HeaderCut {
            path: path.into(),
            n_file_bytes,
        }
        .into());
    }
    let failed = |source| Error::io("read", path, source);
    file.read_exact_at(&mut length, 0).map_err(failed)?;
    let n_header_bytes = u64::from_le_bytes(length);
    if n_header_bytes > MAX_HEADER_BYTES || n_header_bytes > n_file_bytes - N_LENGTH_BYTES {
        return Err(SafetensorsFault::HeaderLength {
            path: path.into(),
            n_header_bytes,
            n_file_bytes,
        }
        .into());
    }
    let mut text = vec![0; n_header_bytes as usize];
    let header = N_LENGTH_BYTES..N_LENGTH_BYTES + n_header_bytes;
    file.read_part(&mut text, N_LENGTH_BYTES, header)
        .map_err(failed)?;
    String::from_utf8(text).map_err(|fault| {
        SafetensorsFault::HeaderNotText {
            path: path.into(),
            at: N_LENGTH_BYTES + fault.utf8_error().valid_up_to() as u64,
        }
        .into()
    })
}

/// Holds every tensor of the header against the format's rules; returns them in file order, with
/// the position in the file where the data of each start.
fn check(
    path: &Path,
    header: &[(String, RawInfo)],
    data_start: u64,
    n_file_bytes: u64,
) -> Result<(Vec<TensorEntry>, Vec<u64>)> {
    let mut seen = std::collections::HashSet::new();
    if let Some((key, _)) = header.iter().find(|(key, _)| !seen.insert(key)) {
        return Err(Error::DuplicateKey {
            path: path.into(),
            key: key.clone(),
        });
    }
    let mut sorted = header.to_vec();
    sorted.sort_by_key(|(_, raw)| raw.data_offsets);
    let mut tensors = Vec::with_capacity(sorted.len());
    let mut starts = Vec::with_capacity(sorted.len());
    for (key, raw) in &sorted {
        tensors.push(TensorEntry::named(key.clone(), check_size(path, key, raw)?));
        starts.push(data_start.saturating_add(raw.data_offsets.0 as u64));
    }
    let n_data_bytes = n_file_bytes - data_start;
    let covered = covered_bytes(path, sorted)?;
    if covered != n_data_bytes {
        return Err(SafetensorsFault::DataLength {
            path: path.into(),
            expected: covered,
            found: n_data_bytes,
        }
        .into());
    }
    Ok((tensors, starts))
}

/// Whether dtype and shape of one tensor agree with its byte range.
fn check_size(path: &Path, key: &str, raw: &RawInfo) -> Result<TensorInfo> {
    let name = raw.dtype.to_string();
    let Some(dtype) = DType::from_name(&name) else {
        return Err(SafetensorsFault::UnsupportedDType {
            path: path.into(),
            key: key.to_owned(),
            dtype: name,
        }
        .into());
    };
    let n_elements =
        (raw.shape.iter()).try_fold(1usize, |product, &size| product.checked_mul(size));
    let n_bytes = n_elements
        .filter(|n_elements| n_elements.checked_mul(dtype.bits()).is_some())
        .map(|n_elements| dtype.bytes_of(n_elements))
        .ok_or_else(|| SafetensorsFault::ShapeOverflow {
            path: path.into(),
            key: key.to_owned(),
            shape: raw.shape.clone(),
        })?;
    let (first, end) = raw.data_offsets;
    if end.checked_sub(first) != Some(n_bytes) {
        return Err(SafetensorsFault::RangeSize {
            path: path.into(),
            key: key.to_owned(),
            first,
            end,
            n_bytes,
        }
        .into());
    }
    Ok(TensorInfo {
        dtype,
        shape: raw.shape.clone(),
    })
}

/// Where the data end, once it is certain that they neither overlap nor leave holes.
fn covered_bytes(path: &Path, sorted: Vec<(String, RawInfo)>) -> Result<u64> {
    let ranges: Vec<_> = sorted.iter().map(|(_, raw)| raw.data_offsets).collect();
    let keys: Vec<_> = sorted.iter().map(|(key, _)| key.clone()).collect();
    match Metadata::new(None, sorted) {
        Ok(metadata) => Ok(metadata.data_len() as u64),
        Err(SafeTensorError::InvalidOffset(key)) => {
            let index = keys.iter().position(|other| *other == key).unwrap_or(0);
            let (first, end) = ranges[index];
            Err(SafetensorsFault::RangePlace {
                path: path.into(),
                key,
                first,
                end,
                expected: index.checked_sub(1).map_or(0, |before| ranges[before].1),
            }
            .into())
        }
        Err(source) => Err(SafetensorsFault::Header {
            path: path.into(),
            source,
        }
        .into()),
    }
}

/// A header as it stands in the file: in order, with duplicates, which a map would lose.
struct Header {
    metadata: StringPairs,
    tensors: Vec<(String, RawInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let named = |fault: A::Error| A::Error::custom(format!("`{key}`: {fault}"));
            if key == METADATA_KEY {
                let pairs = map.next_value().map_err(named)?;
                if metadata.replace(pairs).is_some() {
                    return Err(A::Error::duplicate_field(METADATA_KEY));
                }
            } else {
                let raw = map.next_value().map_err(named)?;
                tensors.push((key, raw));
            }
        }
        Ok(Header {
            metadata: metadata.unwrap_or_default(),
            tensors,
        })
    }
}
