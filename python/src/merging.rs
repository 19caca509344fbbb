//! Merging by a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use merge::execute::{RunOptions, execute, in_memory};
use merge::provenance::HashKind;
use merge::recipe::OutputDType;
use merge::{MergePlan, MergeRecipe};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::json;

use crate::errors::raised;
use crate::job::run;
use crate::reader::Reader;
use crate::saving::{Target, named, summary};

/// A recipe: YAML text, or a file of it.
#[derive(FromPyObject)]
pub struct Given {
    #[pyo3(attribute("text"))]
    text: Option<String>,
    #[pyo3(attribute("path"))]
    path: PathBuf,
}

/// A merge in memory, or the summary of a written one as JSON; and notes.
type Merged = (Option<Reader>, Option<String>, Vec<String>);

/// Merges by a recipe, into memory unless there is a target.
#[pyfunction]
#[pyo3(name = "merge", signature = (recipe, target, dtype, allow_non_finite, hash, report))]
pub fn merge_by_recipe(
    py: Python<'_>,
    recipe: Given,
    target: Option<Target>,
    dtype: &str,
    allow_non_finite: bool,
    hash: bool,
    report: Option<Py<PyAny>>,
) -> PyResult<Merged> {
    let dtype: OutputDType = named("dtype", dtype)?;
    let start = Instant::now();
    let options = target.map(|target| target.options(true)).transpose()?;
    let (plan, notes) = run(py, None, |_| {
        let mut read = match &recipe.text {
            Some(text) => MergeRecipe::parse(text, Path::new("recipe"))?,
            None => MergeRecipe::open(&recipe.path)?,
        };
        if dtype != OutputDType::Keep {
            read.out_dtype = dtype;
        }
        let (plan, _) = MergePlan::resolve(&read)?;
        let beside = plan.beside();
        let of_models = beside.ingredients.iter().filter_map(|of| of.note.clone());
        let notes: Vec<String> = of_models.chain(beside.notes.clone()).collect();
        Ok((plan, notes))
    })?;
    let settings = RunOptions {
        allow_non_finite,
        check_copies: true,
        hash: hash.then(HashKind::default),
    };
    let Some(options) = options else {
        let merged = run(py, report.as_ref(), |watch| {
            in_memory(&plan, &settings, watch)
        })?;
        return Ok((Some(Reader(Arc::new(merged))), None, notes));
    };
    let options = options.called_like(&plan.files());
    let options = options.called(plan.beside().weights);
    let written = run(py, report.as_ref(), |watch| {
        execute(&plan, &options, &settings, watch)
    })?;
    let mut found = summary(&written)?;
    found["seconds"] = json!(start.elapsed().as_secs_f64());
    if let Some(alignment) = plan.alignment().map_err(|error| raised(py, &error))? {
        found["alignment"] = serde_json::to_value(&alignment)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
    }
    Ok((None, Some(found.to_string()), notes))
}
