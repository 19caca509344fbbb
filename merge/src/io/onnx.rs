//! The initializers of ONNX models, as plain named tensors.
//!
//! Source: `onnx.proto` of ONNX; the fields of `ModelProto`, `GraphProto`, `TensorProto` and `StringStringEntryProto`.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::folder::folder_of;
use super::protobuf::{Field, Fields, varint};
use super::ranges::{Array, Ranges, Run, Storage, sized};
use super::read_at::ReadAt;
use super::safetensors::require_root;
use super::source::{Container, OpenOptions, TensorSource};
use super::window::Window;
use crate::remote::address;
use crate::{ContainerFault, DType, Error, Result};

/// Fields of messages, by the messages' names.
const MODEL_GRAPH: u64 = 7;
const GRAPH_INITIALIZER: u64 = 5;
const GRAPH_SPARSE: u64 = 15;
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const SEGMENT: u64 = 3;
const FLOATS: u64 = 4;
const INT32S: u64 = 5;
const STRINGS: u64 = 6;
const INT64S: u64 = 7;
const NAME: u64 = 8;
const RAW: u64 = 9;
const DOUBLES: u64 = 10;
const UINT64S: u64 = 11;
const EXTERNAL: u64 = 13;
const LOCATION: u64 = 14;

/// The most bytes of a name, of a record of external data, and of numbers that are unpacked into memory, here and of all
/// tensors together.
const MAX_TEXT_BYTES: u64 = 1 << 12;
const MAX_UNPACKED_BYTES: u64 = 32 << 20;

/// The most tensors and axes.
const MAX_TENSORS: usize = 1 << 18;
const MAX_AXES: usize = 32;

/// Whether a file begins as the programs that write ONNX begin it: the version, then another field of a model.
pub(super) const fn begins(seen: &[u8]) -> bool {
    matches!(
        seen,
        [
            0x08,
            1..=0x20,
            0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72,
            ..
        ]
    )
}

/// Opens a model; `open_other` opens the files of its external data, which lie in its folder.
pub(super) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
    open_other: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
) -> Result<Box<dyn TensorSource>> {
    require_root(path, options)?;
    let mut reader = Reader {
        window: Window::new(path, file.as_ref()),
        tensors: Vec::new(),
        n_unpacked: 0,
    };
    reader.model()?;
    let tensors = std::mem::take(&mut reader.tensors);
    let mut files = vec![file];
    let (mut arrays, mut others, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for tensor in tensors {
        if !names.insert(tensor.name.clone()) {
            return Err(Error::DuplicateKey {
                path: path.into(),
                key: tensor.name,
            });
        }
        arrays.push(tensor.array(path, &mut files, &mut others, open_other)?);
    }
    let ranges = Ranges::new(path, Container::Onnx, files, &others, arrays);
    Ok(Box::new(ranges))
}

/// A field of a message in the file: a number, or where its bytes are.
enum Placed {
    Integer(u64),
    Bytes(Run),
    /// Four or eight bytes.
    Fixed(u64),
}

struct Reader<'a> {
    window: Window<'a>,
    tensors: Vec<Tensor>,
    n_unpacked: u64,
}

impl Reader<'_> {
    /// Calls `body` with every field of the message in `run`.
    fn each(
        &mut self,
        run: Run,
        body: &mut dyn FnMut(&mut Self, u64, Placed) -> Result<()>,
    ) -> Result<()> {
        let end = run.start + run.n_bytes;
        let mut at = run.start;
        while at < end {
            self.window.go_to(at);
            let tag = self.varint(end)?;
            let value = match tag & 7 {
                0 => Placed::Integer(self.varint(end)?),
                1 => Placed::Fixed(8),
                2 => {
                    let n_bytes = self.varint(end)?;
                    let start = self.window.at();
                    Placed::Bytes(Run { start, n_bytes })
                }
                5 => Placed::Fixed(4),
                kind => return Err(self.window.fault(at, format!("a field of the kind {kind}"))),
            };
            let next = match &value {
                Placed::Integer(_) => Some(self.window.at()),
                Placed::Bytes(run) => run.start.checked_add(run.n_bytes),
                Placed::Fixed(n) => self.window.at().checked_add(*n),
            };
            let begin = at;
            at = next.filter(|&next| next <= end).ok_or_else(|| {
                self.window.fault(
                    begin,
                    format!("a field goes on behind byte {end}, where its message ends"),
                )
            })?;
            body(self, tag >> 3, value)?;
        }
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let begin = self.window.at();
        let mut bytes = Vec::with_capacity(10);
        while bytes.len() < 10 && self.window.at() < end {
            let byte = self.window.byte()?;
            bytes.push(byte);
            if byte & 0x80 == 0 {
                break;
            }
        }
        varint(&mut bytes.as_slice()).ok_or_else(|| self.window.fault(begin, "no whole number"))
    }

    fn model(&mut self) -> Result<()> {
        let whole = Run {
            start: 0,
            n_bytes: self.window.end(),
        };
        let mut n_graphs = 0;
        self.each(whole, &mut |reader, number, value| match (number, value) {
            (MODEL_GRAPH, Placed::Bytes(graph)) => {
                n_graphs += 1;
                reader.graph(graph)
            }
            _ => Ok(()),
        })?;
        match n_graphs {
            1 => Ok(()),
            n => Err(self.window.fault(
                0,
                format!("a model of ONNX has one graph, and this has {n}"),
            )),
        }
    }

    fn graph(&mut self, graph: Run) -> Result<()> {
        self.each(graph, &mut |reader, number, value| match (number, value) {
            (GRAPH_INITIALIZER, Placed::Bytes(run)) => {
                if reader.tensors.len() >= MAX_TENSORS {
                    let what = format!("more than {MAX_TENSORS} initializers");
                    return Err(reader.window.fault(run.start, what));
                }
                let tensor = reader.tensor(run)?;
                reader.tensors.push(tensor);
                Ok(())
            }
            (GRAPH_SPARSE, _) => Err(ContainerFault::Unread {
                path: reader.window.path.into(),
                key: "sparse_initializer".into(),
                what: "a sparse tensor",
            }
            .into()),
            _ => Ok(()),
        })
    }

    /// The bytes of a short field.
    fn short(&mut self, run: Run) -> Result<Vec<u8>> {
        if run.n_bytes > MAX_TEXT_BYTES {
            let what = format!(
                "a field of {} bytes, where {MAX_TEXT_BYTES} are the most",
                run.n_bytes
            );
            return Err(self.window.fault(run.start, what));
        }
        self.window.go_to(run.start);
        self.window.bytes(run.n_bytes)
    }

    fn text(&mut self, run: Run) -> Result<String> {
        let bytes = self.short(run)?;
        String::from_utf8(bytes).map_err(|_| self.window.fault(run.start, "a name is not UTF-8"))
    }

    fn tensor(&mut self, run: Run) -> Result<Tensor> {
        let mut tensor = Tensor::default();
        self.each(run, &mut |reader, number, value| {
            reader.field(&mut tensor, number, value)
        })?;
        self.unpack(&mut tensor)?;
        Ok(tensor)
    }

    fn field(&mut self, tensor: &mut Tensor, number: u64, value: Placed) -> Result<()> {
        match (number, value) {
            (DIMS, Placed::Integer(size)) => tensor.shape.push(size),
            (DIMS, Placed::Bytes(run)) => {
                let bytes = self.short(run)?;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let size = varint(&mut rest);
                    let no_size = || self.window.fault(run.start, "no sizes");
                    tensor.shape.push(size.ok_or_else(no_size)?);
                }
            }
            (DATA_TYPE, Placed::Integer(kind)) => tensor.data_type = kind,
            (NAME, Placed::Bytes(run)) => tensor.name = self.text(run)?,
            (LOCATION, Placed::Integer(place)) => tensor.is_external = place == 1,
            (EXTERNAL, Placed::Bytes(run)) => {
                let bytes = self.short(run)?;
                let pair = pair_of(&bytes);
                let no_pair = || self.window.fault(run.start, "no record of external data");
                tensor.external.push(pair.ok_or_else(no_pair)?);
            }
            (SEGMENT, _) => {
                let at = self.window.at();
                return Err(self.window.fault(at, "a tensor in segments"));
            }
            (RAW | FLOATS | INT32S | STRINGS | INT64S | DOUBLES | UINT64S, Placed::Bytes(run)) => {
                if tensor.data.is_some() {
                    let what = format!("`{}` has its data twice", tensor.name);
                    return Err(self.window.fault(run.start, what));
                }
                tensor.data = Some((number, run));
            }
            (FLOATS | INT32S | INT64S | DOUBLES | UINT64S, _) => {
                let at = self.window.at();
                return Err(self
                    .window
                    .fault(at, "numbers of a tensor one by one, not packed"));
            }
            _ => {}
        }
        match tensor.shape.len() {
            0..=MAX_AXES => Ok(()),
            _ => {
                let at = self.window.at();
                Err(self.window.fault(at, format!("more than {MAX_AXES} axes")))
            }
        }
    }

    /// Numbers of seven bits a byte become elements in memory.
    fn unpack(&mut self, tensor: &mut Tensor) -> Result<()> {
        let Some((INT32S | INT64S | UINT64S, run)) = tensor.data else {
            return Ok(());
        };
        let Some(dtype) = dtype_of(tensor.data_type) else {
            return Ok(());
        };
        let size = dtype.size_bytes();
        // Each number has at least a byte.
        self.n_unpacked = self
            .n_unpacked
            .saturating_add(run.n_bytes.saturating_mul(size as u64));
        if self.n_unpacked > MAX_UNPACKED_BYTES {
            return Err(ContainerFault::Unread {
                path: self.window.path.into(),
                key: tensor.name.clone(),
                what: "among more packed integers than fit in memory (raw_data is read in any size)",
            }
            .into());
        }
        self.window.go_to(run.start);
        let packed = self.window.bytes(run.n_bytes)?;
        let (mut rest, mut held) = (packed.as_slice(), Vec::new());
        while !rest.is_empty() {
            let number = varint(&mut rest);
            let no_number = || self.window.fault(run.start, "no packed numbers");
            held.extend_from_slice(&number.ok_or_else(no_number)?.to_le_bytes()[..size]);
        }
        tensor.held = Some(held);
        Ok(())
    }
}

/// A tensor as the file describes it.
#[derive(Default)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    data_type: u64,
    is_external: bool,
    external: Vec<(String, String)>,
    /// The field of its data, and where it is.
    data: Option<(u64, Run)>,
    /// Its data, where they were packed.
    held: Option<Vec<u8>>,
}

impl Tensor {
    fn array(
        self,
        path: &Path,
        files: &mut Vec<Box<dyn ReadAt>>,
        others: &mut Vec<PathBuf>,
        open_other: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
    ) -> Result<Array> {
        let unread = |dtype: String| ContainerFault::DType {
            path: path.into(),
            key: self.name.clone(),
            dtype,
        };
        let dtype = dtype_of(self.data_type).ok_or_else(|| unread(name_of(self.data_type)))?;
        if self.is_external {
            let (file, run) = self.external_run(path, dtype, files, others, open_other)?;
            let info = sized(path, &self.name, dtype, &self.shape, run.n_bytes)?;
            return Ok(Array::in_order(
                self.name,
                info,
                Storage::Runs(file, vec![run]),
            ));
        }
        let fits = |field: u64| match field {
            RAW => true,
            FLOATS => dtype == DType::F32,
            DOUBLES => dtype == DType::F64,
            INT64S => dtype == DType::I64,
            UINT64S => matches!(dtype, DType::U64 | DType::U32),
            INT32S => !matches!(
                dtype,
                DType::F32 | DType::F64 | DType::I64 | DType::U64 | DType::U32 | DType::C64
            ),
            _ => false,
        };
        let (storage, n_bytes) = match (self.held, self.data) {
            (Some(held), Some((field, _))) if fits(field) => {
                let n_bytes = held.len() as u64;
                (Storage::Held(held), n_bytes)
            }
            (None, Some((field, run))) if fits(field) => (Storage::Runs(0, vec![run]), run.n_bytes),
            (_, Some(_)) => {
                let dtype = format!("{dtype} in a field of another type");
                return Err(ContainerFault::DType {
                    path: path.into(),
                    key: self.name,
                    dtype,
                }
                .into());
            }
            (_, None) => (Storage::Held(Vec::new()), 0),
        };
        let info = sized(path, &self.name, dtype, &self.shape, n_bytes)?;
        Ok(Array::in_order(self.name, info, storage))
    }

    /// The file and the bytes of data that are in another file of the folder.
    fn external_run(
        &self,
        path: &Path,
        dtype: DType,
        files: &mut Vec<Box<dyn ReadAt>>,
        others: &mut Vec<PathBuf>,
        open_other: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
    ) -> Result<(usize, Run)> {
        let find = |key: &str| {
            let mut pairs = self.external.iter();
            pairs
                .find(|(own, _)| own == key)
                .map(|(_, value)| value.as_str())
        };
        let location = find("location").unwrap_or_default();
        let refused = |reason: &'static str| ContainerFault::External {
            path: path.into(),
            key: self.name.clone(),
            location: location.to_owned(),
            reason,
        };
        let other = inside(path, location).map_err(refused)?;
        let file = match others.iter().position(|known| *known == other) {
            Some(known) => known + 1,
            None => {
                if !address::is_address(&other) && !other.exists() {
                    return Err(refused("the file is not there").into());
                }
                files.push(open_other(&other)?);
                others.push(other);
                files.len() - 1
            }
        };
        let number = |key: &str| match find(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| refused("its place is no number")),
        };
        let start = number("offset")?.unwrap_or(0);
        // Without a length, the shape says it.
        let of_shape = || {
            let mut sizes = self.shape.iter();
            let n = sizes.try_fold(dtype.size_bytes() as u64, |n, &size| n.checked_mul(size));
            n.unwrap_or(u64::MAX)
        };
        let n_bytes = number("length")?.unwrap_or_else(of_shape);
        match start.checked_add(n_bytes) {
            Some(end) if end <= files[file].n_bytes() => Ok((file, Run { start, n_bytes })),
            _ => Err(refused("its place is beyond the end of the file").into()),
        }
    }
}

/// The path of a file in the folder of `path` or below it, links included.
fn inside(path: &Path, location: &str) -> std::result::Result<PathBuf, &'static str> {
    let is_plain = !location.is_empty()
        && Path::new(location)
            .components()
            .all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    if !is_plain {
        return Err("only files in the folder of the model are read");
    }
    let other = path.with_file_name(location);
    if address::is_address(path) || !other.exists() {
        return Ok(other);
    }
    // In the cache of the hub both files are links to one folder of contents.
    let folders = [
        folder_of(path).canonicalize(),
        path.canonicalize(),
        other.canonicalize(),
    ];
    match folders {
        [Ok(folder), Ok(model), Ok(real)]
            if real.starts_with(&folder) || real.parent() == model.parent() =>
        {
            Ok(other)
        }
        _ => Err("it is a link that leads out of the folder of the model"),
    }
}

/// A key and a value.
fn pair_of(message: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields::new(message) {
        match field? {
            (1, Field::Bytes(bytes)) => key = String::from_utf8(bytes.to_vec()).ok()?,
            (2, Field::Bytes(bytes)) => value = String::from_utf8(bytes.to_vec()).ok()?,
            _ => {}
        }
    }
    Some((key, value))
}

/// The dtype with this number in `TensorProto.DataType`.
const fn dtype_of(data_type: u64) -> Option<DType> {
    Some(match data_type {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        14 => DType::C64,
        16 => DType::BF16,
        17 => DType::F8E4M3,
        18 => DType::F8E4M3Fnuz,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2Fnuz,
        24 => DType::F8E8M0,
        _ => return None,
    })
}

/// The name of a type that is not read.
fn name_of(data_type: u64) -> String {
    match data_type {
        0 => "undefined".into(),
        8 => "string".into(),
        15 => "complex128".into(),
        21 => "uint4".into(),
        22 => "int4".into(),
        23 => "float4e2m1".into(),
        other => format!("number {other}"),
    }
}
