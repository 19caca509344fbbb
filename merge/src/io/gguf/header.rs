//! The header of a GGUF file, held against the file's size before anything of it is believed.

use std::collections::HashMap;
use std::path::Path;

use super::cursor::Cursor;
use super::metadata::{Metadata, Value};
use super::types::ElementType;
use crate::io::read_at::ReadAt;
use crate::io::source::PlainValue;
use crate::{Error, GgufFault, Result};

/// The first bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// Versions that are read. The first had shorter lengths, and files of it are gone.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;

/// The entry with the alignment of data, and the alignment without it.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
pub(crate) const ALIGNMENT: u64 = 32;

/// The most entries and tensors of a file: many times those of any model.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;

/// The fewest bytes of an entry: length of its key, a key of one byte, type, a value of one byte; and of a tensor: length
/// of its name, a name of one byte, number of axes, one size, type, offset.
const ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
const TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// The most axes.
pub(crate) const MAX_AXES: u32 = 4;

/// A tensor as the header describes it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) kind: &'static ElementType,
    /// Sizes of the axes, outermost first, as torch counts them.
    pub(super) shape: Vec<usize>,
    /// The place of its data in the file.
    pub(super) start: u64,
    pub(super) n_bytes: u64,
}

/// The contents of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Described>,
}

impl Header {
    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// [`GgufFault`].
    pub(super) fn read(path: &Path, file: &dyn ReadAt) -> Result<Self> {
        let mut cursor = Cursor::new(path, file, MAGIC.len() as u64);
        let version = cursor.u32("a version")?;
        if !VERSIONS.contains(&version) {
            return Err(match VERSIONS.contains(&version.swap_bytes()) {
                true => GgufFault::BigEndian { path: path.into() },
                false => GgufFault::Version {
                    path: path.into(),
                    version,
                },
            }
            .into());
        }
        let n_tensors = cursor.u64("a number of tensors")?;
        let n_entries = cursor.u64("a number of entries")?;
        let check = |what, n: u64, least: u64, most: u64| {
            let limit = (cursor.n_left() / least).min(most);
            match n <= limit {
                true => Ok(()),
                false => Err(GgufFault::Count {
                    path: path.into(),
                    what,
                    n,
                    limit,
                }),
            }
        };
        check("tensors", n_tensors, TENSOR_BYTES, MAX_TENSORS)?;
        check("entries of metadata", n_entries, ENTRY_BYTES, MAX_ENTRIES)?;
        let metadata = Metadata::read(&mut cursor, n_entries)?;
        let alignment = alignment_of(path, &metadata)?;
        let mut tensors = Vec::with_capacity(n_tensors as usize);
        for _ in 0..n_tensors {
            tensors.push(read_tensor(&mut cursor, alignment)?);
        }
        let data_start = cursor.at().next_multiple_of(alignment);
        place(path, &mut tensors, data_start, file.n_bytes())?;
        Ok(Self { metadata, tensors })
    }
}

fn alignment_of(path: &Path, metadata: &Metadata) -> Result<u64> {
    let refused = |alignment: String| {
        GgufFault::Alignment {
            path: path.into(),
            alignment,
        }
        .into()
    };
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::One(PlainValue::Integer(n))) => match u32::try_from(*n) {
            Ok(alignment) if alignment.is_power_of_two() && alignment >= 8 => {
                Ok(u64::from(alignment))
            }
            _ => Err(refused(n.to_string())),
        },
        Some(_) => Err(refused("no whole number".into())),
    }
}

/// A tensor whose `start` is still counted from the first byte of all data.
fn read_tensor(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Described> {
    let path = cursor.path;
    let name = cursor.name("name of a tensor")?;
    let n_axes = cursor.u32("a number of axes")?;
    if !(1..=MAX_AXES).contains(&n_axes) {
        return Err(GgufFault::Axes {
            path: path.into(),
            key: name,
            n_axes,
        }
        .into());
    }
    let mut sizes = Vec::new();
    for _ in 0..n_axes {
        sizes.push(cursor.u64("a size")?);
    }
    let type_id = cursor.u32("a type")?;
    let offset = cursor.u64("an offset")?;
    let Some(kind) = ElementType::of(type_id) else {
        return Err(GgufFault::Type {
            path: path.into(),
            key: name,
            type_id,
        }
        .into());
    };
    let overflow = || GgufFault::Overflow {
        path: path.into(),
        key: name.clone(),
        sizes: sizes.clone(),
    };
    // Eight bytes for each, so that no count of bytes overflows later, whatever they are read as.
    let largest = (sizes.iter().map(|&size| size.max(1)))
        .try_fold(1u64, u64::checked_mul)
        .filter(|n| n.checked_mul(8).is_some_and(|n| i64::try_from(n).is_ok()))
        .ok_or_else(overflow)?;
    let n_elements = if sizes.contains(&0) { 0 } else { largest };
    if !sizes[0].is_multiple_of(kind.n_elements as u64) {
        return Err(GgufFault::Rows {
            path: path.into(),
            key: name,
            scheme: kind.name,
            width: sizes[0],
            block: kind.n_elements,
        }
        .into());
    }
    let n_bytes = kind.bytes_of(n_elements).ok_or_else(overflow)?;
    let shape: Option<Vec<usize>> = (sizes.iter().rev())
        .map(|&size| usize::try_from(size).ok())
        .collect();
    let shape = shape.ok_or_else(overflow)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufFault::Unaligned {
            path: path.into(),
            key: name,
            offset,
            alignment,
        }
        .into());
    }
    Ok(Described {
        name,
        kind,
        shape,
        start: offset,
        n_bytes,
    })
}

/// Counts the places of data from the beginning of the file, and checks that they lie in it, apart from each other.
fn place(path: &Path, tensors: &mut [Described], data_start: u64, n_file_bytes: u64) -> Result<()> {
    let mut seen = HashMap::new();
    for (index, tensor) in tensors.iter_mut().enumerate() {
        if seen.insert(tensor.name.clone(), index).is_some() {
            return Err(Error::DuplicateKey {
                path: path.into(),
                key: tensor.name.clone(),
            });
        }
        let first = data_start.saturating_add(tensor.start);
        let end = first.saturating_add(tensor.n_bytes);
        if end > n_file_bytes && tensor.n_bytes > 0 || first > n_file_bytes.max(data_start) {
            return Err(GgufFault::Outside {
                path: path.into(),
                key: tensor.name.clone(),
                first,
                end,
                n_file_bytes,
            }
            .into());
        }
        tensor.start = first;
    }
    let mut in_order: Vec<&Described> =
        tensors.iter().filter(|tensor| tensor.n_bytes > 0).collect();
    in_order.sort_by_key(|tensor| tensor.start);
    match in_order
        .windows(2)
        .find(|pair| pair[0].start + pair[0].n_bytes > pair[1].start)
    {
        None => Ok(()),
        Some(pair) => Err(GgufFault::Overlap {
            path: path.into(),
            key: pair[1].name.clone(),
            other: pair[0].name.clone(),
        }
        .into()),
    }
}
