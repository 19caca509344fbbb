//! NumPy's files: an array (`.npy`), or a zip archive of arrays (`.npz`), as plain named tensors.
//!
//! Source: `numpy.lib.format`.

use std::path::Path;
use std::sync::OnceLock;

use regex::bytes::Regex;

use super::ranges::{Array, Check, Ranges, Run, Storage, row_major, sized};
use super::read_at::ReadAt;
use super::safetensors::require_root;
use super::source::{Container, OpenOptions, TensorSource};
use super::torch::archive::Archive;
use super::torch::archive_error;
use super::torch::strided::Strided;
use super::window::Window;
use crate::{ContainerFault, DType, Result};

/// The first bytes of an array.
const MAGIC: [u8; 6] = *b"\x93NUMPY";

/// The longest header.
const MAX_HEADER_BYTES: u64 = 1 << 16;

/// The ending of entries of an archive.
const ENDING: &str = ".npy";

/// Bytes of a zip entry's header before its name.
const LOCAL_BYTES: usize = 30;

/// Whether a file begins with an array, or with an archive's entry that is called like one.
pub(super) fn begins(seen: &[u8]) -> bool {
    if seen.starts_with(&MAGIC) {
        return true;
    }
    let n_name = seen
        .get(26..28)
        .map(|n| usize::from(u16::from_le_bytes([n[0], n[1]])));
    let name = n_name.and_then(|n| seen.get(LOCAL_BYTES..LOCAL_BYTES + n));
    seen.starts_with(b"PK\x03\x04") && name.is_some_and(|name| name.ends_with(ENDING.as_bytes()))
}

/// Opens a file of either kind. The one array of a file is called like the file.
pub(super) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    require_root(path, options)?;
    let mut mark = [0; MAGIC.len()];
    let n_mark = file.n_bytes().min(mark.len() as u64) as usize;
    (file.read_exact_at(&mut mark[..n_mark], 0))
        .map_err(|source| crate::Error::io("read", path, source))?;
    let arrays = if mark == MAGIC {
        let name = path.file_stem().unwrap_or_default();
        let whole = Run {
            start: 0,
            n_bytes: file.n_bytes(),
        };
        vec![array(path, file.as_ref(), &name.to_string_lossy(), whole)?]
    } else {
        arrays_of(path, file.as_ref())?
    };
    let ranges = Ranges::new(path, Container::Numpy, vec![file], &[], arrays);
    Ok(Box::new(ranges))
}

/// The arrays of an archive.
fn arrays_of(path: &Path, file: &dyn ReadAt) -> Result<Vec<Array>> {
    let archive = Archive::open_any(file).map_err(|fault| archive_error(path, fault))?;
    let (mut arrays, mut runs) = (Vec::new(), Vec::new());
    for entry in archive.entries() {
        let Some(name) = entry.name.strip_suffix(ENDING) else {
            return Err(ContainerFault::Unread {
                path: path.into(),
                key: entry.name.clone(),
                what: "an entry of the archive that is no array",
            }
            .into());
        };
        let start = (archive.data_start(entry)).map_err(|fault| archive_error(path, fault))?;
        let run = Run {
            start,
            n_bytes: entry.n_bytes,
        };
        let mut array = array(path, file, name, run)?;
        array.check = entry.crc.map(|crc| Check::new(&entry.name, run, crc));
        arrays.push(array);
        runs.push((run, entry.name.clone()));
    }
    runs.sort_by_key(|(run, _)| run.start);
    let overlap = runs
        .windows(2)
        .find(|pair| pair[0].0.start + pair[0].0.n_bytes > pair[1].0.start);
    match overlap {
        None => Ok(arrays),
        Some(pair) => Err(ContainerFault::Damaged {
            path: path.into(),
            at: pair[1].0.start,
            what: format!("`{}` overlaps `{}`", pair[1].1, pair[0].1),
        }
        .into()),
    }
}

/// The array in a run of bytes of a file.
fn array(path: &Path, file: &dyn ReadAt, name: &str, run: Run) -> Result<Array> {
    let mut window = Window::new(path, file);
    window.go_to(run.start);
    let end = run.start + run.n_bytes;
    let damaged = |what: &str| -> crate::Error {
        ContainerFault::Damaged {
            path: path.into(),
            at: run.start,
            what: format!("`{name}` is no NumPy array: {what}"),
        }
        .into()
    };
    if run.n_bytes < 10 || window.array::<6>()? != MAGIC {
        return Err(damaged("it does not begin like one"));
    }
    let n_bytes = match window.array::<2>()?[0] {
        1 => u64::from(u16::from_le_bytes(window.array()?)),
        2 | 3 => u64::from(u32::from_le_bytes(window.array()?)),
        _ => return Err(damaged("it is of another version")),
    };
    if n_bytes > MAX_HEADER_BYTES || window.at() + n_bytes > end {
        return Err(damaged("its header is too long"));
    }
    let header = window.bytes(n_bytes)?;
    let start = window.at();
    let Header {
        dtype,
        is_by_columns,
        shape,
    } = Header::parse(path, name, &header)?.ok_or_else(|| damaged("its header is not read"))?;
    let n_data = end - start;
    let info = sized(path, name, dtype, &shape, n_data)?;
    let strides = match is_by_columns {
        false => row_major(&info.shape),
        true => {
            let turned: Vec<usize> = info.shape.iter().rev().copied().collect();
            row_major(&turned).into_iter().rev().collect()
        }
    };
    let elements = Strided::new(0, &info.shape, &strides);
    let data = Run {
        start,
        n_bytes: n_data,
    };
    Ok(Array {
        elements,
        ..Array::in_order(name.to_owned(), info, Storage::Runs(0, vec![data]))
    })
}

/// The contents of an array's header.
struct Header {
    dtype: DType,
    is_by_columns: bool,
    shape: Vec<u64>,
}

impl Header {
    /// Parses the dictionary that NumPy writes; `None` for any other text.
    fn parse(path: &Path, name: &str, text: &[u8]) -> Result<Option<Self>> {
        static PATTERN: OnceLock<Option<Regex>> = OnceLock::new();
        let pattern = PATTERN.get_or_init(|| {
            Regex::new(
                r"^\{'descr': (?:'([^']*)'|(\[.*\])), 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\),? ?\} *\n?$",
            )
            .ok()
        });
        let Some(found) = pattern.as_ref().and_then(|pattern| pattern.captures(text)) else {
            return Ok(None);
        };
        let text = |at: usize| {
            let part = found.get(at).map_or(&b""[..], |part| part.as_bytes());
            String::from_utf8_lossy(part).into_owned()
        };
        let said = if found.get(2).is_some() {
            text(2)
        } else {
            text(1)
        };
        let dtype = dtype_of(&said).ok_or_else(|| ContainerFault::DType {
            path: path.into(),
            key: name.to_owned(),
            dtype: said.clone(),
        })?;
        let sizes = text(4);
        let sizes = sizes
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty());
        let shape: Option<Vec<u64>> = sizes.map(|size| size.parse().ok()).collect();
        Ok(shape.map(|shape| Self {
            dtype,
            is_by_columns: text(3) == "True",
            shape,
        }))
    }
}

/// The dtype of a little-endian type of NumPy. `V2` is what it calls the bf16 of JAX.
fn dtype_of(said: &str) -> Option<DType> {
    Some(match said {
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        "<f8" => DType::F64,
        "|V2" | "<V2" => DType::BF16,
        "|i1" => DType::I8,
        "<i2" => DType::I16,
        "<i4" => DType::I32,
        "<i8" => DType::I64,
        "|u1" => DType::U8,
        "<u2" => DType::U16,
        "<u4" => DType::U32,
        "<u8" => DType::U64,
        "|b1" => DType::Bool,
        "<c8" => DType::C64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_that_numpy_writes() {
        let parse = |text: &str| Header::parse(Path::new("a.npy"), "a", text.as_bytes());
        let found = parse("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }   \n");
        let found = found.expect("known").expect("a header");
        assert_eq!((found.dtype, found.is_by_columns), (DType::F32, true));
        assert_eq!(found.shape, [3, 4]);
        let scalar = parse("{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n");
        assert!(scalar.expect("known").expect("a header").shape.is_empty());
        for other in [
            "{'descr': '<f4', 'fortran_order': True, 'shape': (99999999999999999999,), }\n",
            "{'shape': (3,), 'descr': '<f4', 'fortran_order': __import__('os')}",
        ] {
            assert!(parse(other).expect("known").is_none(), "{other}");
        }
        for refused in ["'>f4'", "'|O'", "[('a', '<f4')]"] {
            let text = format!("{{'descr': {refused}, 'fortran_order': False, 'shape': (1,), }}\n");
            assert!(parse(&text).is_err(), "{refused}");
        }
    }
}
