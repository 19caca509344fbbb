//! Errors of the library as Python exceptions.

use std::io::ErrorKind;
use std::path::Path;

use merge::{Error, WriteFault, printable};
use pyo3::prelude::*;

/// The exception for an error, made by `vlmerge._errors`: the same text, the hint beside it.
pub fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let text = printable(&error.to_string()).into_owned();
    let (errno, path) = match error {
        Error::Io { source, path, .. } => (source.raw_os_error(), Some(path.as_path())),
        Error::TargetExists { path } => (None, Some(path.as_path())),
        _ => (None, None),
    };
    let path = path.map(Path::display).map(|path| path.to_string());
    let made = py.import("vlmerge._errors").and_then(|module| {
        module.call_method1("made", (kind(error), text, error.hint(), errno, path))
    });
    made.map_or_else(|error| error, PyErr::from_value)
}

/// The class of an error, by its name in `vlmerge._errors.KINDS`.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::MissingKey { .. } => "tensor",
        Error::TargetExists { .. } => "exists",
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => "no file",
        Error::Io { .. } | Error::TargetBusy { .. } | Error::Remote(_) => "system",
        Error::Write(WriteFault::MissingFolder { .. }) => "no file",
        Error::Write(WriteFault::DiskSpace { .. }) => "system",
        Error::Cancelled | Error::Stopped { .. } => "stopped",
        _ => "value",
    }
}
