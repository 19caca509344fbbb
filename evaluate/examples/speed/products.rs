//! The speed of products that the processor allows, for the floor of a workload.

use candle_core::{Device, Tensor};
use evaluate::Result;

/// Twenty products of 512 rows with a weight of the published FFN each.
pub fn products() -> Result<Tensor> {
    let x = Tensor::full(0.5_f32, (512, 768), &Device::Cpu)?;
    let weight = Tensor::full(0.25_f32, (3072, 768), &Device::Cpu)?.t()?;
    let mut product = x.matmul(&weight)?;
    for _ in 1..20 {
        product = x.matmul(&weight)?;
    }
    Ok(product)
}
