//! Writing arrays through a plan, as every verb writes.

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

/// The value of this name, of a type whose names are those of recipes and flags.
///
/// # Errors
/// `ValueError` with the existing names.
pub fn named<T: serde::de::DeserializeOwned>(what: &str, name: &str) -> PyResult<T> {
    serde_json::from_value(Value::String(name.to_owned()))
        .map_err(|error| PyValueError::new_err(format!("{what}: {error}")))
}

/// The kind of file of this name.
///
/// # Errors
/// `ValueError` with the existing names.
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
/// `ValueError` for numbers without a JSON form, of which there are none.
pub fn summary(summary: &Summary) -> PyResult<Value> {
    serde_json::to_value(summary).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// How and where to write.
#[derive(FromPyObject)]
pub struct Target {
    /// The file or folder.
    #[pyo3(attribute("path"))]
    pub path: PathBuf,
    /// The kind of file, where the path's extension does not tell.
    #[pyo3(attribute("container"))]
    pub container: Option<String>,
    /// Whether to replace an existing file.
    #[pyo3(attribute("force"))]
    pub force: bool,
    /// Most bytes of a file.
    #[pyo3(attribute("shard_bytes"))]
    pub shard_bytes: Option<u64>,
    /// Whether to wait for the disk.
    #[pyo3(attribute("sync"))]
    pub sync: bool,
}

impl Target {
    /// The settings of writing one file, or a model folder if it `may_be_folder`.
    ///
    /// # Errors
    /// `ValueError` for an unknown kind of file.
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

/// Writes tensors; returns the summary as JSON.
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
        // A tensor that is written unchanged may hold any value.
        check_copies: false,
        hash: None,
        ..RunOptions::default()
    };
    let written = run(py, report.as_ref(), |watch| {
        execute(&plan, &options, &settings, watch)
    })?;
    Ok(summary(&written)?.to_string())
}

/// Copies every tensor, floats in `dtype`.
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
