//! Writes arrays through a plan, as each verb does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use merge::execute::{RunOptions, Summary, execute};
use merge::io::{Aliases, OutputContainer, WriteOptions};
use merge::plan::{Action, Entry, PlanBuilder, TensorRef};
use merge::recipe::OutputDType;
use merge::{MergePlan, Result, TensorInfo};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::Value;

use crate::arrays::{Given, checkpoint};
use crate::errors::raised;
use crate::job::run;

/// The value that recipes and flags call `name`. The error names the argument as `what`.
///
/// # Errors
/// `ValueError` that lists the known names.
pub fn named<T: serde::de::DeserializeOwned>(what: &str, name: &str) -> PyResult<T> {
    serde_json::from_value(Value::String(name.to_owned()))
        .map_err(|error| PyValueError::new_err(format!("{what}: {error}")))
}

/// The kind of file with this name; `None` without a name.
///
/// # Errors
/// `ValueError` that lists the known names.
pub fn container(name: Option<String>) -> PyResult<Option<OutputContainer>> {
    name.map(|name| match name.as_str() {
        "safetensors" => Ok(OutputContainer::Safetensors),
        "torch" => Ok(OutputContainer::Torch),
        "lightning" => Ok(OutputContainer::TorchLightning),
        "model" => Ok(OutputContainer::TorchModel),
        "gguf" => Ok(OutputContainer::Gguf),
        _ => Err(PyValueError::new_err(format!(
            "container: there is no `{name}`; there are safetensors, torch, lightning, model and gguf"
        ))),
    })
    .transpose()
}

/// The summary of a written output as JSON.
///
/// # Errors
/// `ValueError` if a number has no JSON form. All numbers of a summary have one.
pub fn summary(summary: &Summary) -> PyResult<Value> {
    serde_json::to_value(summary).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The place and the form of an output.
#[derive(FromPyObject)]
pub struct Target {
    /// The file or folder.
    #[pyo3(attribute("path"))]
    pub path: PathBuf,
    /// The kind of file; if `None`, the extension of the path decides.
    #[pyo3(attribute("container"))]
    pub container: Option<String>,
    /// Whether to replace an existing output.
    #[pyo3(attribute("force"))]
    pub force: bool,
    /// Most bytes of a file.
    #[pyo3(attribute("shard_bytes"))]
    pub shard_bytes: Option<u64>,
    /// Whether to wait until the disk holds the output.
    #[pyo3(attribute("sync"))]
    pub sync: bool,
}

impl Target {
    /// The settings to write one file. If `may_be_folder`, the path may also name a model folder.
    ///
    /// # Errors
    /// `ValueError` for an unknown kind of file, and if `shard_bytes` is 0.
    pub fn options(&self, may_be_folder: bool) -> PyResult<WriteOptions> {
        let container = container(self.container.clone())?;
        let options = match may_be_folder {
            true => WriteOptions::of_model(&self.path, container),
            false => WriteOptions::new(&self.path),
        };
        if self.shard_bytes == Some(0) {
            return Err(PyValueError::new_err("shard_bytes must be above 0"));
        }
        Ok(WriteOptions {
            container,
            max_shard_bytes: self.shard_bytes,
            force: self.force,
            sync: self.sync,
            ..options
        })
    }
}

/// Writes tensors and returns the summary as JSON.
#[pyfunction]
#[pyo3(signature = (tensors, aliases, target, dtype, metadata, report))]
pub fn save(
    py: Python<'_>,
    tensors: Vec<Given<'_>>,
    aliases: Aliases,
    target: Target,
    dtype: &str,
    metadata: BTreeMap<String, String>,
    report: Option<Py<PyAny>>,
) -> PyResult<String> {
    let dtype: OutputDType = named("dtype", dtype)?;
    let options = target.options(false)?;
    let source = Arc::new(checkpoint(tensors, aliases)?);
    let plan = plan(source, dtype, metadata).map_err(|error| raised(py, &error))?;
    let settings = RunOptions {
        // The arrays of a user may hold NaN and infinity.
        check_copies: false,
        hash: None,
        ..RunOptions::default()
    };
    let written = run(py, report.as_ref(), |watch| {
        execute(&plan, &options, &settings, watch)
    })?;
    Ok(summary(&written)?.to_string())
}

/// A plan that copies each tensor and converts floats to `dtype`.
fn plan(
    source: Arc<merge::Checkpoint>,
    dtype: OutputDType,
    metadata: BTreeMap<String, String>,
) -> Result<MergePlan> {
    source.require_unique_names()?;
    let mut plan = PlanBuilder::new("vlmerge.save".to_owned());
    let index = plan.source(Arc::clone(&source));
    for (name, info) in source.tensors() {
        plan.add(Entry {
            name: name.to_owned(),
            info: TensorInfo {
                dtype: dtype.apply(info.dtype),
                shape: info.shape.clone(),
            },
            action: Action::Copy(TensorRef {
                source: index,
                key: name.to_owned(),
            }),
            why: "given".to_owned(),
        })?;
    }
    for (key, value) in metadata {
        plan = plan.note(&key, value);
    }
    plan.finish()
}
