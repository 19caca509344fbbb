//! Arrays of Python as a checkpoint, so that a plan writes them like any other.

use std::path::PathBuf;

use merge::io::{Aliases, Container, Root, SourceInfo, TensorEntry};
use merge::{Checkpoint, DType, Error, Result, TensorInfo, TensorSource};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PySlice};

/// A tensor as Python hands it over: name, dtype in safetensors' spelling, shape, and its bytes in row-major order.
pub type Given<'py> = (String, String, Vec<usize>, Bound<'py, PyMemoryView>);

/// The checkpoint of these tensors, without a copy of them.
///
/// # Errors
/// `ValueError` for an unknown dtype, and for a number of bytes that the shape does not have.
pub fn checkpoint(given: Vec<Given<'_>>, aliases: Aliases) -> PyResult<Checkpoint> {
    let mut tensors = Vec::with_capacity(given.len());
    let mut data = Vec::with_capacity(given.len());
    for (name, dtype, shape, bytes) in given {
        let wrong = |what: String| PyValueError::new_err(format!("`{name}`: {what}"));
        let dtype = DType::from_name(&dtype).ok_or_else(|| wrong(format!("no dtype {dtype}")))?;
        let mut sizes = shape.iter();
        let n_elements = sizes.try_fold(1_usize, |n, &size| n.checked_mul(size));
        let n_bytes = bytes.len()?;
        let is_fit = n_elements.is_some_and(|n| {
            n.checked_mul(dtype.size_bytes()).is_some() && dtype.bytes_of(n) == n_bytes
        });
        if !is_fit {
            return Err(wrong(format!(
                "{n_bytes} bytes are no {dtype} of shape {shape:?}"
            )));
        }
        tensors.push(TensorEntry::named(name, TensorInfo { dtype, shape }));
        data.push(bytes.unbind());
    }
    let root = Root {
        name: String::new(),
        n_tensors: tensors.len(),
        n_bytes: tensors.iter().map(|entry| entry.info.n_bytes()).sum(),
    };
    Ok(Checkpoint::new(Box::new(Arrays {
        info: SourceInfo {
            path: PathBuf::from("(memory)"),
            container: Container::Memory,
            files: Vec::new(),
            metadata: Default::default(),
            roots: vec![root],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        },
        tensors,
        aliases,
        data,
    })))
}

struct Arrays {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    aliases: Aliases,
    data: Vec<Py<PyMemoryView>>,
}

impl TensorSource for Arrays {
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
        let changed = || Error::InputChanged {
            path: self.info.path.clone(),
        };
        let start = self.tensors[index].info.dtype.bytes_of(first);
        Python::attach(|py| {
            let end = isize::try_from(start + out.len()).ok();
            let bytes = end.map(|end| part(self.data[index].bind(py), start as isize, end));
            match bytes {
                Some(Ok(bytes)) if bytes.len() == out.len() => {
                    out.copy_from_slice(&bytes);
                    Ok(())
                }
                _ => Err(changed()),
            }
        })
    }
}

/// Bytes `start..end` of a view: the interpreter copies them, so that no other thread changes them meanwhile.
fn part(
    view: &Bound<'_, PyMemoryView>,
    start: isize,
    end: isize,
) -> PyResult<pyo3::pybacked::PyBackedBytes> {
    let range = PySlice::new(view.py(), start, end, 1);
    let bytes = view.get_item(range)?.call_method0("tobytes")?;
    Ok(bytes.extract::<pyo3::pybacked::PyBackedBytes>()?)
}
