//! Merge methods that are Python functions.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use half::bf16;
use merge::methods::{
    Base, Chunk, ElementKernel, Fallback, GroupData, GroupShape, Kind, Masks, Needs, Operation,
    ParameterSpec, Scope, Setting, StepRounding, Value, Values, WholeKernel,
};
use merge::recipe::Parameters;
use merge::{Error, MergeFault, MergeMethod, Result, methods};
use ndarray::{ArrayD, IxDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyDict};

use crate::errors::raised;

/// The value of a parameter where a recipe gives none.
#[derive(FromPyObject, Clone, Copy)]
pub enum Otherwise {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
}

/// A parameter: its name, its default if recipes need not give it, whether each model has a value of its own.
type Parameter = (String, Option<Otherwise>, bool);

/// Adds a method, which recipes then name like any other.
#[pyfunction]
#[pyo3(signature = (name, function, is_elementwise, base, n_models, parameters))]
pub fn add_method(
    py: Python<'_>,
    name: &str,
    function: Py<PyAny>,
    is_elementwise: bool,
    base: &str,
    n_models: (usize, Option<usize>),
    parameters: Vec<Parameter>,
) -> PyResult<()> {
    let base = match base {
        "none" => Base::None,
        "optional" => Base::Optional,
        "required" => Base::Required,
        _ => {
            return Err(PyValueError::new_err(format!(
                "base: there is no `{base}`; there are none, optional and required"
            )));
        }
    };
    let method = Method {
        name: kept(name),
        needs: Needs::inputs(base, n_models.0, n_models.1.unwrap_or(usize::MAX)),
        parameters: specs(parameters)?,
        is_elementwise,
        function: Arc::new(function),
    };
    let make = move |_: &Parameters, _: bool| -> Result<Box<dyn MergeMethod>> {
        Ok(Box::new(method.clone()))
    };
    methods::add(name, Arc::new(make)).map_err(|error| raised(py, &error))
}

/// The text for as long as the process lives: names of methods and parameters are few, and each is kept once.
fn kept(text: &str) -> &'static str {
    static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(text) {
        return known;
    }
    let new: &'static str = Box::leak(text.to_owned().into_boxed_str());
    all.insert(new);
    new
}

/// The parameters as methods of the library list theirs.
fn specs(parameters: Vec<Parameter>) -> PyResult<&'static [ParameterSpec]> {
    let number = Kind::Number {
        range: "a finite number",
        holds: |_| true,
    };
    let mut specs = Vec::with_capacity(parameters.len());
    for (name, default, is_per_model) in parameters {
        let (kind, default) = match default {
            Some(Otherwise::Flag(value)) => (Kind::Flag, Fallback::Flag(value)),
            Some(Otherwise::Number(value)) if value.is_finite() => {
                (number, Fallback::Number(value))
            }
            Some(Otherwise::Number(value)) => {
                return Err(PyValueError::new_err(format!(
                    "the default of `{name}` must be finite, not {value}"
                )));
            }
            None => (number, Fallback::Required),
        };
        let scope = match is_per_model {
            true => Scope::PerMember,
            false => Scope::Shared,
        };
        specs.push(ParameterSpec {
            name: kept(&name),
            scope,
            kind,
            default,
        });
    }
    Ok(Vec::leak(specs))
}

/// A function as a merge method.
#[derive(Clone)]
struct Method {
    name: &'static str,
    needs: Needs,
    parameters: &'static [ParameterSpec],
    is_elementwise: bool,
    function: Arc<Py<PyAny>>,
}

impl MergeMethod for Method {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        self.parameters
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let call = Call {
            method: self.clone(),
            slot: group.slot.key.clone(),
            n_members: group.members.len(),
            has_base: group.has_base && self.needs.base != Base::None,
            values: group.values.clone(),
        };
        Ok(match self.is_elementwise {
            true => Operation::Elementwise(Arc::new(call)),
            false => Operation::Whole(Arc::new(call)),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let members: Vec<String> = group.members.iter().map(|member| member.label()).collect();
        format!("{} of {}", self.name, members.join(", "))
    }
}

/// The function on one group of tensors.
struct Call {
    method: Method,
    slot: String,
    n_members: usize,
    has_base: bool,
    values: Values,
}

impl Call {
    fn fault(&self, reason: String) -> Error {
        MergeFault::AddedMethod {
            slot: self.slot.clone(),
            method: self.method.name,
            reason: merge::printable(&reason).into_owned(),
        }
        .into()
    }

    /// The values of the parameters: one each, or a list with one for each model.
    fn parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let parameters = PyDict::new(py);
        for spec in self.method.parameters {
            match spec.scope {
                Scope::Shared => {
                    let value = self.values.shared.get(spec.name);
                    parameters.set_item(spec.name, value.map(|(value, _)| plain(value)))?;
                }
                Scope::PerMember => {
                    let members = self.values.members.iter();
                    let values = members.map(|of| of.get(spec.name).map(|(value, _)| plain(value)));
                    parameters.set_item(spec.name, values.collect::<Vec<_>>())?;
                }
            }
        }
        Ok(parameters)
    }

    /// Calls the function on arrays of one shape, in row-major order; `vlmerge._methods.call` checks what it returns.
    fn call<T: Pod>(
        &self,
        dtype: &str,
        shape: &[usize],
        members: &[&[T]],
        base: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        Python::attach(|py| {
            let array = |values: &[T]| PyByteArray::new(py, bytemuck::cast_slice(values));
            let called = self.parameters(py).and_then(|parameters| {
                let members: Vec<_> = members.iter().map(|values| array(values)).collect();
                let function = self.method.function.bind(py);
                let arguments = (function, members, base.map(array), parameters, dtype, shape);
                let bytes = py
                    .import("vlmerge._methods")?
                    .call_method1("call", arguments)?;
                Ok(bytes.extract::<PyBackedBytes>()?)
            });
            let bytes = called.map_err(|error| self.failed(py, &error))?;
            let out: &mut [u8] = bytemuck::cast_slice_mut(out);
            if bytes.len() != out.len() {
                return Err(self.fault("its result has another number of elements".to_owned()));
            }
            out.copy_from_slice(&bytes);
            Ok(())
        })
    }

    /// An exception of the function as an error that names the tensor.
    fn failed(&self, py: Python<'_>, error: &PyErr) -> Error {
        let described = py
            .import("vlmerge._methods")
            .and_then(|module| {
                module.call_method1("described", (error.clone_ref(py).into_value(py),))
            })
            .and_then(|text| text.extract::<String>());
        self.fault(described.unwrap_or_else(|_| error.to_string()))
    }

    /// The function on the same elements of all tensors.
    fn on_elements<V: Value>(
        &self,
        dtype: &str,
        chunk: &Chunk<'_, V>,
        out: &mut [V::Real],
    ) -> Result<()>
    where
        V::Real: Pod,
    {
        let reals =
            |values: &[V]| -> Vec<V::Real> { values.iter().map(|value| value.real()).collect() };
        let members: Vec<_> = chunk.members.iter().map(|values| reals(values)).collect();
        let members: Vec<&[V::Real]> = members.iter().map(Vec::as_slice).collect();
        let base = chunk.base.filter(|_| self.has_base).map(reals);
        self.call(dtype, &[out.len()], &members, base.as_deref(), out)
    }
}

/// A value of a parameter as Python has it.
#[derive(IntoPyObject)]
enum Plain {
    Flag(bool),
    Number(f64),
    Text(String),
}

fn plain(setting: &Setting) -> Plain {
    match setting {
        Setting::Flag(value) => Plain::Flag(*value),
        Setting::Number(value) => Plain::Number(*value),
        Setting::Text(text) => Plain::Text(text.clone()),
    }
}

impl ElementKernel for Call {
    fn unit(&self) -> usize {
        1
    }

    fn masks(&self) -> Option<&dyn Masks> {
        None
    }

    fn combine_f32(&self, chunk: &Chunk<'_, f32>, _: StepRounding, out: &mut [f32]) -> Result<()> {
        self.on_elements("<f4", chunk, out)
    }

    fn combine_bf16(
        &self,
        chunk: &Chunk<'_, bf16>,
        _: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.on_elements("<f4", chunk, out)
    }

    fn combine_f64(&self, chunk: &Chunk<'_, f64>, _: StepRounding, out: &mut [f64]) -> Result<()> {
        self.on_elements("<f8", chunk, out)
    }
}

impl WholeKernel for Call {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let members: Result<Vec<ArrayD<f64>>> = (0..self.n_members)
            .map(|index| group.member(index))
            .collect();
        let members = members?;
        let base = match self.has_base {
            true => Some(group.base()?),
            false => None,
        };
        let arrays = members.iter().chain(&base);
        let arrays: Vec<_> = arrays.map(|array| array.as_standard_layout()).collect();
        let slices: Option<Vec<&[f64]>> = arrays.iter().map(|array| array.as_slice()).collect();
        let (Some(slices), Some(first)) = (slices, members.first()) else {
            return Err(self.fault("there are no tensors to merge".to_owned()));
        };
        let (members, base) = slices.split_at(self.n_members);
        let mut merged = vec![0.0; first.len()];
        self.call(
            "<f8",
            first.shape(),
            members,
            base.first().copied(),
            &mut merged,
        )?;
        ArrayD::from_shape_vec(IxDyn(first.shape()), merged)
            .map_err(|error| self.fault(error.to_string()))
    }

    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64 {
        // Members, base, result and its copy; what the function takes itself is not known.
        let n_elements: u64 = shape.iter().map(|&size| size as u64).product();
        let n_arrays = n_members as u64 + 3;
        n_elements
            .saturating_mul(n_arrays)
            .saturating_mul(size_of::<f64>() as u64)
    }
}
