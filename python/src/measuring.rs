//! The output of the verbs `inspect`, `diff` and `distance` with `--json`, and gram matrices.

use std::path::PathBuf;
use std::sync::Arc;

use merge::diff::{DiffOptions, opened};
use merge::distance::report::DistanceReport;
use merge::distance::{DistanceOptions, Grain, Metric, checkpoint_pairs, expert_pairs, measure};
use merge::gram::GramStore;
use merge::inspection::{InspectOptions, Inspection};
use merge::io::{OpenOptions, open};
use merge::{Checkpoint, Progress, Result, layouts, quantized};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::errors::raised;
use crate::job::run;
use crate::saving::named;

/// JSON, and notes on how checkpoints were found.
type Found = (String, Vec<String>);

/// Everything that the headers of a checkpoint say.
#[pyfunction]
#[pyo3(signature = (path, root, raw, statistics, hashes, report))]
pub fn inspect(
    py: Python<'_>,
    path: PathBuf,
    root: Option<String>,
    raw: bool,
    statistics: bool,
    hashes: bool,
    report: Option<Py<PyAny>>,
) -> PyResult<Found> {
    let options = OpenOptions { root, raw };
    run(py, report.as_ref(), |watch| {
        let checkpoint = open(&path, &options)?;
        let notes = checkpoint.notes().to_vec();
        let options = InspectOptions {
            statistics,
            hashes,
            is_listed: &|_| true,
        };
        let inspection = Inspection::new(checkpoint, &options, watch)?;
        Ok((inspection.to_json().to_string(), notes))
    })
}

/// The differences between two checkpoints.
#[pyfunction]
#[pyo3(signature = (left, right, tolerance, headers_only, raw, roots, report))]
#[expect(clippy::too_many_arguments, reason = "they are those of the verb")]
pub fn diff(
    py: Python<'_>,
    left: PathBuf,
    right: PathBuf,
    tolerance: f64,
    headers_only: bool,
    raw: bool,
    roots: (Option<String>, Option<String>),
    report: Option<Py<PyAny>>,
) -> PyResult<Found> {
    if tolerance.is_nan() || tolerance < 0.0 {
        return Err(PyValueError::new_err("tolerance must not be negative"));
    }
    let open = |path: &PathBuf, root| opened(path, &OpenOptions { root, raw }, headers_only);
    run(py, report.as_ref(), |watch| {
        let (one, other) = (open(&left, roots.0)?, open(&right, roots.1)?);
        let options = DiffOptions {
            tolerance,
            headers_only,
        };
        let found = merge::diff::diff(&one, &other, &options, watch)?;
        let found = found.to_json(&left, &right, tolerance);
        Ok((found.to_string(), notes(&[&one, &other])))
    })
}

/// Distances between the experts of one checkpoint, or between two.
#[pyfunction]
#[pyo3(signature = (path, other, seed, metrics, per, root, report))]
#[expect(clippy::too_many_arguments, reason = "they are those of the verb")]
pub fn distance(
    py: Python<'_>,
    path: PathBuf,
    other: Option<PathBuf>,
    seed: Option<PathBuf>,
    metrics: Vec<String>,
    per: Vec<String>,
    root: Option<String>,
    report: Option<Py<PyAny>>,
) -> PyResult<Found> {
    let metrics: Result<Vec<Metric>> = metrics.iter().map(|metric| metric.parse()).collect();
    let grains: PyResult<Vec<Grain>> = per.iter().map(|grain| named("per", grain)).collect();
    let options = DistanceOptions {
        metrics: metrics.map_err(|error| raised(py, &error))?,
        grains: grains?,
    };
    let opening = OpenOptions { root, raw: false };
    run(py, report.as_ref(), |watch| {
        let open = |path: &PathBuf, options: &OpenOptions| quantized::open(path, options);
        let input = open(&path, &opening)?;
        let against = other
            .as_ref()
            .map(|path| open(path, &opening))
            .transpose()?;
        let from = seed.as_ref();
        let from = from
            .map(|path| open(path, &OpenOptions::default()))
            .transpose()?;
        let layout = layouts::detect(&input)?;
        let set = match &against {
            None => expert_pairs(&input, layout.as_ref(), from.as_deref())?,
            Some(other) => checkpoint_pairs(&input, other, layout.as_ref(), from.as_deref())?,
        };
        let distances = measure(&set.pairs, &options, watch)?;
        let files = [Some(path.as_path()), other.as_deref(), seed.as_deref()];
        let found = DistanceReport::new(files, &set, &distances);
        let mut opened = vec![input.as_ref()];
        opened.extend(against.as_deref());
        // Names and numbers always have a JSON form.
        Ok((
            serde_json::to_string(&found).unwrap_or_default(),
            notes(&opened),
        ))
    })
}

/// A gram matrix: its name, its width, and its rows as `f64`.
type Matrix<'py> = (String, usize, Bound<'py, PyByteArray>);

/// The matrices of a gram file, in full.
#[pyfunction]
#[pyo3(signature = (path, report))]
pub fn grams<'py>(
    py: Python<'py>,
    path: PathBuf,
    report: Option<Py<PyAny>>,
) -> PyResult<Vec<Matrix<'py>>> {
    let store = run(py, None, |_| {
        let checkpoint = Arc::new(open(&path, &OpenOptions::default())?);
        GramStore::new(checkpoint)
    })?;
    let names = store.checkpoint().tensors().map(|(name, _)| name);
    names
        .map(|name| {
            let matrix = run(py, report.as_ref(), |watch| {
                let info = store.checkpoint().require(name)?;
                watch.start("reading", info.n_bytes());
                let matrix = store.read(name)?;
                watch.advance(info.n_bytes());
                Ok(matrix)
            })?;
            let rows = matrix.as_standard_layout();
            let bytes: &[u8] = bytemuck::cast_slice(rows.as_slice().unwrap_or_default());
            let width = matrix.nrows();
            Ok((name.to_owned(), width, PyByteArray::new(py, bytes)))
        })
        .collect()
}

/// Notes for users on how checkpoints were found.
fn notes(checkpoints: &[&Checkpoint]) -> Vec<String> {
    let notes = checkpoints.iter().flat_map(|of| of.notes());
    notes.cloned().collect()
}
