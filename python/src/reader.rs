//! An open checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use merge::io::OpenOptions;
use merge::{Checkpoint, DType, Error, Progress, Result, TensorInfo, decode_f32};
use pyo3::exceptions::{PyIndexError, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use serde_json::Value;

use crate::errors::raised;
use crate::job::{Watch, run};

/// Bytes that are read at a time, between two looks at signals.
const PIECE_BYTES: usize = 8 << 20;

/// Elements that are decoded at a time.
const PIECE_ELEMENTS: usize = 1 << 18;

/// A checkpoint: its headers, and data on request.
#[pyclass(frozen, module = "vlmerge._vlmerge")]
pub struct Reader(pub Arc<Checkpoint>);

/// Dtype, shape, bytes, and the name of the codes that a tensor is stored in.
type Info = (&'static str, Vec<usize>, u64, Option<String>);

#[pymethods]
impl Reader {
    /// Opens a checkpoint.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        root: Option<String>,
        raw: bool,
        dequantize: bool,
    ) -> PyResult<Self> {
        let options = OpenOptions { root, raw };
        let checkpoint = run(py, None, |_| {
            let checkpoint = match dequantize {
                true => merge::quantized::open(&path, &options)?,
                false => Arc::new(merge::io::open(&path, &options)?),
            };
            checkpoint.require_unique_names()?;
            Ok(checkpoint)
        });
        Ok(Self(checkpoint?))
    }

    /// The file that was opened.
    #[getter]
    fn path(&self) -> String {
        self.0.path().display().to_string()
    }

    /// The kind of file.
    #[getter]
    fn container(&self) -> String {
        match serde_json::to_value(self.0.info().container) {
            Ok(Value::String(name)) => name,
            _ => "other".to_owned(),
        }
    }

    /// Metadata of the file.
    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.0.info().metadata.clone()
    }

    /// Other names of tensors, each with the name that the tensor goes by.
    #[getter]
    fn aliases(&self) -> BTreeMap<String, String> {
        self.0.aliases().clone()
    }

    /// Notes for users on how it was found.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes().to_vec()
    }

    /// Names of its tensors in order, each tensor once.
    #[getter]
    fn names(&self) -> Vec<String> {
        self.0.tensors().map(|(name, _)| name.to_owned()).collect()
    }

    /// Facts about a tensor.
    fn info(&self, py: Python<'_>, name: &str) -> PyResult<Info> {
        let info = self.require(py, name)?;
        let stored = self.0.stored_as(name).map(str::to_owned);
        Ok((
            info.dtype.name(),
            info.shape.clone(),
            info.n_bytes(),
            stored,
        ))
    }

    /// The bytes of elements `first..first + n` of a tensor: as they are stored, or as `f32`.
    #[pyo3(signature = (name, first, n, as_f32, report))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        first: usize,
        n: usize,
        as_f32: bool,
        report: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let info = self.require(py, name)?;
        let end = first.checked_add(n);
        if end.is_none_or(|end| end > info.n_elements())
            || (!as_f32 && !first.is_multiple_of(shared(info.dtype)))
        {
            return Err(PyIndexError::new_err(format!(
                "`{name}` has {} elements, and {n} from number {first} on are asked for",
                info.n_elements()
            )));
        }
        let n_bytes = match as_f32 {
            true => n.checked_mul(size_of::<f32>()),
            false => Some(info.dtype.bytes_of(n)),
        };
        let too_large = || PyMemoryError::new_err(format!("`{name}` does not fit into memory"));
        let part = Part {
            checkpoint: &self.0,
            name,
            info,
            first,
        };
        PyByteArray::new_with(py, n_bytes.ok_or_else(too_large)?, |out| {
            run(py, report.as_ref(), |watch| match as_f32 {
                true => part.decode(out, watch),
                false => part.copy(out, watch),
            })
        })
    }
}

impl Reader {
    fn require(&self, py: Python<'_>, name: &str) -> PyResult<&TensorInfo> {
        let info = self.0.require(name);
        info.map_err(|error| raised(py, &error))
    }
}

/// The number of elements that begin with a byte together.
fn shared(dtype: DType) -> usize {
    match dtype.bits() % 8 {
        0 => 1,
        _ => 4,
    }
}

/// Elements of a tensor from `first` on.
struct Part<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    info: &'a TensorInfo,
    first: usize,
}

impl Part<'_> {
    /// Their bytes.
    fn copy(&self, out: &mut [u8], watch: &Watch) -> Result<()> {
        watch.start("reading", out.len() as u64);
        let dtype = self.info.dtype;
        // Pieces begin with whole bytes, whatever the dtype.
        let elements = PIECE_BYTES / dtype.bytes_of(4) * 4;
        for (index, out) in out.chunks_mut(dtype.bytes_of(elements)).enumerate() {
            if watch.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.checkpoint
                .read(self.name, self.first + index * elements, out)?;
            watch.advance(out.len() as u64);
        }
        Ok(())
    }

    /// Their values as `f32`.
    fn decode(&self, out: &mut [u8], watch: &Watch) -> Result<()> {
        watch.start("reading", out.len() as u64);
        let dtype = self.info.dtype;
        let skipped = self.first % shared(dtype);
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        let mut first = self.first - skipped;
        let mut skipped = skipped;
        for out in out.chunks_mut(PIECE_ELEMENTS * size_of::<f32>()) {
            if watch.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let n = skipped + out.len() / size_of::<f32>();
            bytes.resize(dtype.bytes_of(n), 0);
            values.resize(n, 0.0);
            self.checkpoint.read(self.name, first, &mut bytes)?;
            decode_f32(self.name, dtype, &bytes, &mut values)?;
            out.copy_from_slice(bytemuck::cast_slice(&values[skipped..]));
            watch.advance(out.len() as u64);
            // Whole bytes lie before the next piece, because its first element follows a multiple of four.
            first += n / shared(dtype) * shared(dtype);
            skipped = n % shared(dtype);
        }
        Ok(())
    }
}
