//! Writing outputs.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use merge::TensorInfo;
use merge::io::{WriteOptions, Writer};

use crate::Result;

/// Writes tensors by name to a file, in f32, or in their own dtype where that is no f16 or bf16.
///
/// # Errors
/// When the target is in the way or the disk fails.
pub fn write(
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    options: &WriteOptions,
) -> Result<()> {
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        let (dtype, bytes) = match flat.dtype() {
            DType::F64 => (
                merge::DType::F64,
                bytemuck::cast_slice(&flat.to_vec1::<f64>()?).to_vec(),
            ),
            DType::U8 => (merge::DType::U8, flat.to_vec1::<u8>()?),
            DType::I64 => (
                merge::DType::I64,
                bytemuck::cast_slice(&flat.to_vec1::<i64>()?).to_vec(),
            ),
            _ => {
                let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                (merge::DType::F32, bytemuck::cast_slice(&values).to_vec())
            }
        };
        let info = TensorInfo {
            dtype,
            shape: tensor.dims().to_vec(),
        };
        stored.push((name.clone(), info, bytes));
    }
    let infos: Vec<(String, TensorInfo)> = (stored.iter())
        .map(|(name, info, _)| (name.clone(), info.clone()))
        .collect();
    let writer = Writer::create(&infos, metadata, options)?;
    for (index, (_, _, bytes)) in stored.iter().enumerate() {
        writer.write(index, 0, bytes)?;
    }
    writer.finish(metadata)?;
    Ok(())
}
