//! Files of numbers that ranks bring together, one tensor after the other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use merge::TensorInfo;
use merge::io::{WriteOptions, Writer};

use crate::Result;

/// Writes tensors of f32 with these names and shapes: `values` gives those of one, and is asked for every one of them in
/// turn whatever happens, for other ranks may wait for that. One tensor is in memory at a time.
///
/// # Errors
/// When the disk is full or fails, and what `values` returns.
pub(super) fn write_in_turn<'v>(
    path: &Path,
    shapes: impl IntoIterator<Item = (String, Vec<usize>)>,
    metadata: &BTreeMap<String, String>,
    values: impl Fn(usize) -> Result<Cow<'v, [f32]>>,
) -> Result<()> {
    let infos = shapes.into_iter().map(|(name, shape)| {
        let info = TensorInfo {
            dtype: merge::DType::F32,
            shape,
        };
        (name, info)
    });
    let infos: Vec<_> = infos.collect();
    let options = WriteOptions {
        force: true,
        ..WriteOptions::new(path)
    };
    let writer = Writer::create(&infos, metadata, &options);
    let mut failed = None;
    for at in 0..infos.len() {
        let values = values(at)?;
        if let Ok(writer) = &writer
            && failed.is_none()
        {
            failed = writer.write(at, 0, bytemuck::cast_slice(&values)).err();
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    writer?.finish(metadata)?;
    Ok(())
}
