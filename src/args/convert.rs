//! Flags of all verbs that bring a checkpoint to another form.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use merge::Checkpoint;
use merge::convert::Resize;
use merge::io::{OpenOptions, open};
use merge::quantized;

use crate::output::Output;

/// Ways to resize relative position tables.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ResizeArg {
    /// Cubic convolution, as in vl-merging and torch
    Bicubic,
    /// The same, smoothed when shrinking, as in open_clip
    BicubicAntialiased,
    /// Geometric spacing and a cubic spline, as in VLMo and BEiT; cannot shrink
    Geometric,
    /// As geometric, and a smaller image gets the middle of the table, as the published EVE does
    GeometricOrCrop,
}

impl From<ResizeArg> for Resize {
    fn from(arg: ResizeArg) -> Self {
        match arg {
            ResizeArg::Bicubic => Self::Bicubic,
            ResizeArg::BicubicAntialiased => Self::BicubicAntialiased,
            ResizeArg::Geometric => Self::Geometric,
            ResizeArg::GeometricOrCrop => Self::GeometricOrCrop,
        }
    }
}

/// Opens the checkpoint of a verb that copies its tensors.
pub fn open_source(
    path: &Path,
    root: Option<String>,
    output: &Output,
) -> merge::Result<Arc<Checkpoint>> {
    let source = open(
        path,
        &OpenOptions {
            root,
            ..OpenOptions::default()
        },
    )?;
    quantized::check_readable(&source)?;
    output.notes_of(&source);
    Ok(Arc::new(source))
}

/// Says what of a checkpoint is not copied with its tensors.
pub fn note_others(path: &Path, source: &Checkpoint, output: &Output) {
    let info = source.info();
    let others = info.values.len() + info.opaque.len();
    if others > 0 {
        output.note(format!(
            "{}: only tensors are copied, not the {others} other values",
            path.display()
        ));
    }
}
