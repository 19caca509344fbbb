//! Flax's msgpack files: dictionaries of arrays, each an extension of type 1.
//!
//! Names and the order of axes are those that the same model has in torch, by the rule of transformers' loader: a `kernel`
//! is a `weight` with its axes reversed, that of a convolution `(h, w, in, out)` one of `(out, in, h, w)`.
//!
//! Source: `flax.serialization`'s `_msgpack_ext_pack`; transformers' `modeling_flax_pytorch_utils.py`.

use std::path::Path;

use super::ranges::{Array, Ranges, Run, Storage, row_major, sized};
use super::read_at::ReadAt;
use super::safetensors::require_root;
use super::source::{Container, OpenOptions, TensorSource};
use super::torch::strided::Strided;
use super::window::Window;
use crate::{ContainerFault, DType, Result};

/// Extensions: an array, and a number of NumPy, which is packed like one.
const ARRAY: u8 = 1;
const SCALAR: u8 = 3;

/// The key that marks a dictionary of the parts of an array of more than a gigabyte.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// The deepest dictionaries, the longest key, the most arrays and axes.
const MAX_DEPTH: usize = 64;
const MAX_KEY_BYTES: u64 = 1 << 12;
const MAX_ARRAYS: usize = 1 << 18;
const MAX_AXES: u64 = 32;

/// Whether a file begins with a dictionary whose first key is a string.
pub(super) const fn begins(seen: &[u8]) -> bool {
    let key = match seen {
        [0x81..=0x8f, key, ..] | [0xde, _, _, key, ..] | [0xdf, _, _, _, _, key, ..] => *key,
        _ => return false,
    };
    matches!(key, 0xa0..=0xbf | 0xd9 | 0xda)
}

/// Opens a file.
pub(super) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
) -> Result<Box<dyn TensorSource>> {
    require_root(path, options)?;
    let mut reader = Reader {
        window: Window::new(path, file.as_ref()),
        arrays: Vec::new(),
    };
    let mut names = Vec::new();
    match reader.item()? {
        Item::Map(n) => reader.map(n, &mut names)?,
        _ => return Err(reader.window.fault(0, "no dictionary of arrays")),
    }
    if reader.window.at() != reader.window.end() {
        let at = reader.window.at();
        return Err(reader.window.fault(at, "something follows the dictionary"));
    }
    let found = std::mem::take(&mut reader.arrays);
    let arrays = (found.into_iter())
        .map(|found| found.array(path, options.raw))
        .collect::<Result<_>>()?;
    let ranges = Ranges::new(path, Container::Flax, vec![file], &[], arrays);
    Ok(Box::new(ranges))
}

/// The kind of value that the next bytes begin.
enum Item {
    Map(u64),
    List(u64),
    Text(u64),
    Binary(u64),
    Extension(u8, u64),
    Integer(i128),
    /// A number, a truth value or nothing, passed over.
    Plain,
}

/// An array as it stands in the file.
struct Found {
    names: Vec<String>,
    dtype: DType,
    shape: Vec<u64>,
    runs: Vec<Run>,
}

struct Reader<'a> {
    window: Window<'a>,
    arrays: Vec<Found>,
}

impl Reader<'_> {
    fn item(&mut self) -> Result<Item> {
        let at = self.window.at();
        let mark = self.window.byte()?;
        let length = |bytes: &[u8]| bytes.iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        Ok(match mark {
            0x00..=0x7f => Item::Integer(mark.into()),
            0x80..=0x8f => Item::Map(u64::from(mark & 15)),
            0x90..=0x9f => Item::List(u64::from(mark & 15)),
            0xa0..=0xbf => Item::Text(u64::from(mark & 31)),
            0xc0 | 0xc2 | 0xc3 => Item::Plain,
            0xc4 => Item::Binary(length(&self.window.array::<1>()?)),
            0xc5 => Item::Binary(length(&self.window.array::<2>()?)),
            0xc6 => Item::Binary(length(&self.window.array::<4>()?)),
            0xc7..=0xc9 => {
                let n_bytes = match mark {
                    0xc7 => length(&self.window.array::<1>()?),
                    0xc8 => length(&self.window.array::<2>()?),
                    _ => length(&self.window.array::<4>()?),
                };
                Item::Extension(self.window.byte()?, n_bytes)
            }
            0xca => {
                self.window.skip(4)?;
                Item::Plain
            }
            0xcb => {
                self.window.skip(8)?;
                Item::Plain
            }
            0xcc => Item::Integer(length(&self.window.array::<1>()?).into()),
            0xcd => Item::Integer(length(&self.window.array::<2>()?).into()),
            0xce => Item::Integer(length(&self.window.array::<4>()?).into()),
            0xcf => Item::Integer(length(&self.window.array::<8>()?).into()),
            0xd0 => Item::Integer(i8::from_be_bytes(self.window.array()?).into()),
            0xd1 => Item::Integer(i16::from_be_bytes(self.window.array()?).into()),
            0xd2 => Item::Integer(i32::from_be_bytes(self.window.array()?).into()),
            0xd3 => Item::Integer(i64::from_be_bytes(self.window.array()?).into()),
            0xd4..=0xd8 => Item::Extension(self.window.byte()?, 1 << (mark - 0xd4)),
            0xd9 => Item::Text(length(&self.window.array::<1>()?)),
            0xda => Item::Text(length(&self.window.array::<2>()?)),
            0xdb => Item::Text(length(&self.window.array::<4>()?)),
            0xdc => Item::List(length(&self.window.array::<2>()?)),
            0xdd => Item::List(length(&self.window.array::<4>()?)),
            0xde => Item::Map(length(&self.window.array::<2>()?)),
            0xdf => Item::Map(length(&self.window.array::<4>()?)),
            _ => return Err(self.window.fault(at, format!("{mark:#04x} begins nothing"))),
        })
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let at = self.window.at();
        match self.item()? {
            Item::Text(n) if n <= MAX_KEY_BYTES => {
                let bytes = self.window.bytes(n)?;
                String::from_utf8(bytes)
                    .map_err(|_| self.window.fault(at, format!("{what} is not UTF-8")))
            }
            _ => Err(self.window.fault(at, format!("{what} is no string"))),
        }
    }

    fn size(&mut self) -> Result<u64> {
        let at = self.window.at();
        match self.item()? {
            Item::Integer(n) => {
                u64::try_from(n).map_err(|_| self.window.fault(at, "a size below zero"))
            }
            _ => Err(self.window.fault(at, "a size is no whole number")),
        }
    }

    /// A dictionary of `n` entries, whose keys are below `names`.
    fn map(&mut self, n: u64, names: &mut Vec<String>) -> Result<()> {
        let at = self.window.at();
        // A key and a value have at least a byte each.
        self.window.require(n.saturating_mul(2))?;
        if names.len() >= MAX_DEPTH {
            return Err(self
                .window
                .fault(at, format!("dictionaries {MAX_DEPTH} deep")));
        }
        let mut chunks: Option<(Vec<u64>, Vec<Found>)> = None;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..n {
            let at = self.window.at();
            let key = self.text("a key")?;
            if !seen.insert(key.clone()) {
                return Err(self
                    .window
                    .fault(at, format!("the key `{key}` comes twice")));
            }
            if key == CHUNKED {
                chunks = Some((Vec::new(), Vec::new()));
                self.item()?;
                continue;
            }
            let is_of_chunks = chunks.is_some();
            names.push(key);
            match self.item()? {
                Item::Map(n) if is_of_chunks && names.last().is_some_and(|key| key == "shape") => {
                    if n > MAX_AXES {
                        return Err(self.window.fault(at, format!("an array of {n} axes")));
                    }
                    for _ in 0..n {
                        self.text("the number of an axis")?;
                        let size = self.size()?;
                        if let Some((shape, _)) = &mut chunks {
                            shape.push(size);
                        }
                    }
                }
                Item::Map(n) if is_of_chunks => {
                    let before = self.arrays.len();
                    self.map(n, names)?;
                    let parts = self.arrays.split_off(before);
                    if let Some((_, all)) = &mut chunks {
                        all.extend(parts);
                    }
                }
                Item::Map(n) => self.map(n, names)?,
                Item::Extension(kind, n_bytes) => self.array(kind, n_bytes, names)?,
                Item::Text(n) | Item::Binary(n) => self.window.skip(n)?,
                Item::List(n) => self.list(n, names)?,
                Item::Integer(_) | Item::Plain => {}
            }
            names.pop();
        }
        if let Some((shape, mut parts)) = chunks {
            // Keys are numbers as strings, in any order.
            let number = |part: &Found| part.names.last().and_then(|name| name.parse::<u64>().ok());
            parts.sort_by_key(number);
            let dtype = parts.first().map_or(DType::U8, |part| part.dtype);
            if parts.iter().any(|part| part.dtype != dtype) {
                return Err(self
                    .window
                    .fault(at, "parts of an array have different types"));
            }
            self.arrays.push(Found {
                names: names.clone(),
                dtype,
                shape,
                runs: parts.into_iter().flat_map(|part| part.runs).collect(),
            });
        }
        Ok(())
    }

    /// A list, of which arrays are numbered.
    fn list(&mut self, n: u64, names: &mut Vec<String>) -> Result<()> {
        self.window.require(n)?;
        if names.len() >= MAX_DEPTH {
            let at = self.window.at();
            return Err(self.window.fault(at, format!("lists {MAX_DEPTH} deep")));
        }
        for number in 0..n {
            names.push(number.to_string());
            match self.item()? {
                Item::Map(n) => self.map(n, names)?,
                Item::List(n) => self.list(n, names)?,
                Item::Extension(kind, n_bytes) => self.array(kind, n_bytes, names)?,
                Item::Text(n) | Item::Binary(n) => self.window.skip(n)?,
                Item::Integer(_) | Item::Plain => {}
            }
            names.pop();
        }
        Ok(())
    }

    /// An array, packed as its shape, the name of its dtype and its bytes.
    fn array(&mut self, kind: u8, n_bytes: u64, names: &[String]) -> Result<()> {
        let at = self.window.at();
        self.window.require(n_bytes)?;
        let end = at + n_bytes;
        let key = names.join("/");
        if kind != ARRAY && kind != SCALAR {
            return Err(ContainerFault::DType {
                path: self.window.path.into(),
                key,
                dtype: format!("extension {kind}"),
            }
            .into());
        }
        if self.arrays.len() >= MAX_ARRAYS {
            return Err(self
                .window
                .fault(at, format!("more than {MAX_ARRAYS} arrays")));
        }
        let Item::List(3) = self.item()? else {
            return Err(self.window.fault(at, format!("`{key}` is no array")));
        };
        let n_axes = match self.item()? {
            Item::List(n) if n <= MAX_AXES => n,
            _ => return Err(self.window.fault(at, format!("`{key}` has no shape"))),
        };
        let shape = (0..n_axes)
            .map(|_| self.size())
            .collect::<Result<Vec<u64>>>()?;
        let said = self.text("a type")?;
        let dtype = dtype_of(&said).ok_or_else(|| ContainerFault::DType {
            path: self.window.path.into(),
            key: key.clone(),
            dtype: said.clone(),
        })?;
        let Item::Binary(n_data) = self.item()? else {
            return Err(self.window.fault(at, format!("`{key}` has no data")));
        };
        let start = self.window.at();
        if start.checked_add(n_data) != Some(end) {
            return Err(self
                .window
                .fault(start, format!("the data of `{key}` do not fill it")));
        }
        self.window.skip(n_data)?;
        self.arrays.push(Found {
            names: names.to_vec(),
            dtype,
            shape,
            runs: vec![Run {
                start,
                n_bytes: n_data,
            }],
        });
        Ok(())
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "float64" => DType::F64,
        "int8" => DType::I8,
        "int16" => DType::I16,
        "int32" => DType::I32,
        "int64" => DType::I64,
        "uint8" => DType::U8,
        "uint16" => DType::U16,
        "uint32" => DType::U32,
        "uint64" => DType::U64,
        "bool" => DType::Bool,
        "float8_e4m3fn" => DType::F8E4M3,
        "float8_e5m2" => DType::F8E5M2,
        _ => return None,
    })
}

impl Found {
    /// The array under its name in torch, or as it is.
    fn array(self, path: &Path, is_raw: bool) -> Result<Array> {
        let key = self.names.join("/");
        let n_bytes = self.runs.iter().map(|run| run.n_bytes).sum();
        let mut info = sized(path, &key, self.dtype, &self.shape, n_bytes)?;
        let mut strides = row_major(&info.shape);
        let mut names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        if !is_raw {
            let is_statistic = names.first() == Some(&"batch_stats");
            if names.len() > 1 && matches!(names[0], "params" | "batch_stats") {
                names.remove(0);
            }
            let last = names.last_mut();
            if let Some(last) = last {
                if *last == "kernel" {
                    turn(&mut info.shape);
                    turn(&mut strides);
                }
                *last = match *last {
                    "kernel" | "scale" | "embedding" => "weight",
                    "mean" if is_statistic => "running_mean",
                    "var" if is_statistic => "running_var",
                    other => other,
                };
            }
        }
        let elements = Strided::new(0, &info.shape, &strides);
        Ok(Array {
            name: names.join("."),
            key,
            elements,
            info,
            storage: Storage::Runs(0, self.runs),
            check: None,
        })
    }
}

/// Axes of a kernel in the order of torch.
fn turn<T: Copy>(axes: &mut [T]) {
    match *axes {
        [high, wide, inputs, outputs] => {
            axes.copy_from_slice(&[outputs, inputs, high, wide]);
        }
        _ => axes.reverse(),
    }
}
